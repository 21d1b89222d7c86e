"""What a benchmark measured: rows in a JSONL file, figures in a JSON file, and a page beside them.

A row is appended and synced as soon as it is measured, so a benchmark that was stopped resumes
after the last whole row.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nexus_integrations.files import write_json, written_whole

Row = dict[str, Any]
"""The settings and figures of one run, as JSON holds them. It holds no text of a corpus."""

STEP = 1e-4
"""Values of single questions are recorded as integers in this unit."""


def machine(*packages: str) -> dict[str, Any]:
    """Return what figures depend on beside the code: processor, cores, Python and versions."""
    return {
        "processor": f"{len(os.sched_getaffinity(0))} × {_processor()}",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def run_id(*parts: Any) -> str:
    """Return a hash of all that tells one run from another: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_rows(*paths: Path) -> list[Row]:
    """Read the whole rows of the files that exist.

    A last line without its end was being written when the benchmark was stopped: it is no row.
    Raises `ValueError` for another line that is not JSON.
    """
    rows = []
    for path in paths:
        if not path.exists():
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        try:
            rows += [json.loads(line) for line in lines if line.endswith("\n")]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} holds a line that is no row: {error}") from None
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row, in place of a line that was cut off, and sync it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def find_row(run: str, *paths: Path) -> Row | None:
    """Return the recorded row of a run, None where there is none."""
    return next((row for row in read_rows(*paths) if row["run"] == run), None)


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; floats keep three digits after the point, None is a dash."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def write(path: Path, content: Mapping[str, Any], page: str) -> None:
    """Write `content` to `path`.json and `page`, which is Markdown, to `path`.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(file_of(path, ".json"), content)
    write_page(path, page)


def write_page(path: Path, page: str) -> None:
    """Write a Markdown page to `path`.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file_of(path, ".md")) as draft:
        draft.write_text(page, encoding="utf-8")


def file_of(path: Path, end: str) -> Path:
    """Return the path with another end: the name may hold points, as in `minilm-v2.1`."""
    return path.with_name(path.name + end)


def in_steps(values: Any) -> list[int]:
    """Return values of single questions as integers in units of `STEP`."""
    steps: list[int] = np.rint(np.asarray(values) / STEP).astype(int).tolist()
    return steps
