"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from nexus_integrations.files import folder_written_whole, write_json, written_whole


def test_the_new_content_takes_the_place_of_the_old_at_the_end(tmp_path):
    """Until then the old content is read; afterwards nothing lies beside the file."""
    path = tmp_path / "file"
    path.write_text("old")
    with written_whole(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_content_and_no_draft(tmp_path):
    """Whatever fails, in a folder of drafts too."""
    path, drafts = tmp_path / "file", tmp_path / "drafts"
    path.write_text("old")
    drafts.mkdir()

    def fail():
        with written_whole(path, drafts) as draft:
            draft.write_text("half")
            assert draft.parent == drafts
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(drafts.iterdir()) == []


def test_content_is_synced_before_its_name(tmp_path, monkeypatch):
    """A power cut after the renaming finds the content on the disk, and then the name as well."""
    done = []
    sync, replace = os.fsync, Path.replace

    def synced(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "content")
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda *names: (done.append("name"), replace(*names)))
    with written_whole(tmp_path / "file") as draft:
        draft.write_text("new")
    assert done == ["content", "name", "folder"]


def test_who_may_read_it_follows_the_umask(tmp_path):
    """As for any file that a program writes."""
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "file") as draft:
            draft.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name != "posix", reason="no modes here")
def test_private_files_and_folders_are_their_owner_s_alone(tmp_path):
    """0600 and 0700 with `private`; otherwise as the umask leaves new files."""
    write_json(tmp_path / "private.json", ["text"], private=True)
    write_json(tmp_path / "model.json", [])
    for name, private in (("texts", True), ("model", False)):
        with folder_written_whole(tmp_path / name, private=private) as draft:
            (draft / "inner").mkdir()
            (draft / "inner" / "file").write_text("x")
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["private.json"] == 0o600
    assert modes["model.json"] == 0o666 & ~umask
    assert modes["texts"] == 0o700
    assert modes["model"] == 0o777 & ~umask
    assert (tmp_path / "texts" / "inner" / "file").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_replaced_whole_or_kept(tmp_path):
    """Nothing of the old one stays in the new one; a failure leaves the old one, and no draft."""
    for name in ("old", "new"):
        with folder_written_whole(tmp_path / "folder") as draft:
            (draft / name).write_text(name)

    def fail():
        with folder_written_whole(tmp_path / "folder") as draft:
            (draft / "half").write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
