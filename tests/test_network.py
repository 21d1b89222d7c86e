"""The whole job, watched from outside: nobody is looked up, reached or written to.

The job runs without `CI` in its environment, since some libraries send nothing where that is set,
with a cold cache, in a network namespace of its own where the system allows one, and under strace.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.model, pytest.mark.dendrites]

# What a process may do without a network: local sockets, and netlink, by which glibc asks for the
# machine's own addresses.
_LOCAL = re.compile(r"AF_UNIX|AF_NETLINK|sa_family=AF_UNSPEC")
_LOOPBACK = re.compile(r'sin_addr=inet_addr\("127\.|inet_pton\(AF_INET6, "::1"')
_LOOKUP = re.compile(r"htons\(53\)|htons\(853\)|htons\(5353\)")
_CREATED = re.compile(r'(?:openat\(AT_FDCWD, |creat\(|mkdir\(|rename\(.*?, )"([^"]+)"')
# Not files that last: devices, the kernel's tables, shared memory.
_PASSING = ("/dev/", "/proc/", "/sys/")


def watched(folder: Path, program: Sequence[str], home: Path) -> list[str]:
    """Run a program in `folder` under strace; return its calls that a network or a file is in."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not on this machine")
    log = folder.parent / "calls.txt"
    calls = "connect,sendto,sendmsg,sendmmsg,openat,open,creat,mkdir,mkdirat,rename,renameat"
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "256", "-e", f"trace={calls}"]
    command += ["-e", "signal=none", "-o", str(log), *program]
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0:
        loopback = 'ip link set lo up 2> /dev/null; exec "$@"'
        command = ["unshare", "--net", "sh", "-c", loopback, "sh", *command]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CI", "XDG_", "HF_", "ORT_"))}
    environment = {
        **kept,
        "HOME": str(home),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    (folder / "tmp").mkdir()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def reached(calls: Sequence[str]) -> list[str]:
    """Return the calls that leave the machine, or look a name up."""
    found = []
    for call in calls:
        if not re.search(r"connect\(|sendto\(|sendmsg\(|sendmmsg\(", call):
            continue
        if "AF_INET" not in call or _LOCAL.search(call):
            continue
        if _LOOKUP.search(call) or not _LOOPBACK.search(call):
            found.append(call)
    return found


def created(calls: Sequence[str], inside: Sequence[Path]) -> list[str]:
    """Return the files and folders made outside of the folders given."""
    found = set()
    for call in calls:
        if "mkdir" not in call and "rename" not in call and "O_CREAT" not in call:
            continue
        if " = -1 " in call:
            continue
        match = _CREATED.search(call)
        if match is None or not match[1].startswith("/") or match[1].startswith(_PASSING):
            continue
        path = Path(match[1])
        if not any(path.is_relative_to(folder) for folder in inside):
            found.add(match[1])
    return sorted(found)


def test_strace_sees_what_the_job_must_not_do(tmp_path):
    """A look-up, a connection and a file elsewhere are noticed: the test below can fail."""
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    program = (
        "import socket\n"
        "for address in (('127.0.0.1', 53), ('192.0.2.1', 443)):\n"
        "    try:\n"
        "        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(address)\n"
        "    except OSError:\n"
        "        pass\n"
        f"open({str(tmp_path / 'elsewhere')!r}, 'w')\n"
    )
    calls = watched(folder, [sys.executable, "-c", program], home)
    assert len(reached(calls)) == 2
    assert created(calls, [folder, home]) == [str(tmp_path / "elsewhere")]


def test_the_whole_job_reaches_nobody(tmp_path):
    """Load, embed, export, train with a dendrite, nudge, tune, evaluate, in both frameworks."""
    pytest.importorskip("perforatedai")
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    job = Path(__file__).with_name("network_job.py")
    calls = watched(folder, [sys.executable, str(job)], home)
    assert (folder / "done").exists()
    assert reached(calls) == []
    # docs/how-to/private-install.md names these; matplotlib keeps a list of fonts, for the report.
    named = [(".cache", "nexus-integrations"), (".cache", "matplotlib"), (".config", "matplotlib")]
    parents = [home / ".cache", home / ".config"]
    made = created(calls, [folder, *(home.joinpath(*parts) for parts in named)])
    assert set(made) <= {str(path) for path in parents}
    kept = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert kept <= set(named)
