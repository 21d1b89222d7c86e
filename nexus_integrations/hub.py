"""Sharing a tuned encoder: to a repository of the Hugging Face hub, or to a folder."""

import re
import tempfile
from pathlib import Path

from nexus_integrations.card import model_card, write_card
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.source import DEFAULT_MODEL, find_model
from nexus_integrations.extras import extra

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def save_to_hub(
    encoder: DendriticEncoder,
    destination: str | Path,
    *,
    backbone_name: str | None = None,
    whole: bool = False,
    card: str | None = None,
    private: bool = True,
    token: str | None = None,
) -> str:
    """Upload a tuned encoder to a repository of the Hugging Face hub, or write it to a folder.

    A string names a repository, "organisation/name", which is made where there is none, `private`
    unless told otherwise; a `Path` is a folder, and nothing is sent anywhere. The heads alone are
    handed on, with the name and digest of their backbone, unless `whole` asks for the backbone's
    weights too. `backbone_name` is found out for all-MiniLM-L6-v2. `card` is the README, by default
    `model_card(encoder)`.

    Returns the address or the folder. Raises `ValueError` when the backbone's name is not known
    or a string could mean a folder,
    `ImportError` without huggingface_hub, and what that raises for the upload.
    """
    name = None if whole else backbone_name or _known_name(encoder)
    if isinstance(destination, Path):
        encoder.save(destination, backbone_name=name)
        write_card(destination, card or model_card(encoder, backbone_name=name))
        return str(destination)
    with extra("train"):
        from huggingface_hub import HfApi
    if not _REPOSITORY.fullmatch(destination) or Path(destination).parent.is_dir():
        raise ValueError(
            f"{destination!r} is no 'organisation/name' of a repository, or may be a folder here: "
            "to write to a folder give a pathlib.Path"
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "encoder", backbone_name=name)
        write_card(Path(folder) / "encoder", card or model_card(encoder, backbone_name=name))
        api.create_repo(destination, private=private, exist_ok=True)
        info = api.upload_folder(
            repo_id=destination,
            folder_path=str(Path(folder) / "encoder"),
            commit_message=f"Encoder {encoder.fingerprint[:12]}",
        )
    return str(info)


def _known_name(encoder: DendriticEncoder) -> str:
    """Return the backbone's name where it is the default model's; else ask for it."""
    folder = encoder.backbone.folder
    try:
        default = find_model(DEFAULT_MODEL)
    except (FileNotFoundError, ImportError):
        default = None
    if folder is None or default is None or folder.resolve() != default.resolve():
        raise ValueError(
            "heads alone need the name of their backbone: give backbone_name, as in "
            f"backbone_name={DEFAULT_MODEL!r}, or whole=True to hand on its weights as well"
        )
    return DEFAULT_MODEL
