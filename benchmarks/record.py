"""Keep what a benchmark measured: a JSON file, and beside it a page that can be read."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, str]:
    """Return what figures depend on beside the code: processor, Python, and versions."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = f"{len(os.sched_getaffinity(0))} × {models[0] or platform.machine()}"
    return {
        "processor": cores,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; floats keep three digits behind the point, None is a dash."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def write(path: str, content: dict[str, Any], page: str) -> None:
    """Write `content` to `path`.json and `page`, which is Markdown, to `path`.md."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    Path(f"{path}.json").write_text(text + "\n", encoding="utf-8")
    Path(f"{path}.md").write_text(page, encoding="utf-8")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
