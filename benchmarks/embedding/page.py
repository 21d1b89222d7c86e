"""The page of all parts, in Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks import record
from benchmarks.embedding.parts import CHARACTERS
from benchmarks.embedding.process import AT_ONCE, PEER

_TITLES = {
    "passages": "passages of covidqa",
    "mixed": "texts of 5 to 256 tokens, shuffled",
    "question": "one question after another",
    "at once": f"questions, {AT_ONCE} at once",
}


def page(content: Mapping[str, Any]) -> str:
    """Return the page of the parts that were measured."""
    parts = [
        "# Embedding at the machine's speed\n\nWritten by `python -m benchmarks.embedding`. All "
        "models take turns in one run, each in a process of its own, with no setting but the "
        "model's folder. Figures are medians; ratios compare with LlamaIndex's "
        f"`{PEER}`.\n"
    ]
    written = {"speed": _speed, "quality": _quality, "start": _start, "memory": _memory}
    for name, write in written.items():
        if found := content.get(name):
            versions = ", ".join(" ".join(map(str, item)) for item in found["machine"].items())
            parts += [write(found), f"{versions}.\n"]
    return "\n".join(parts)


def _speed(found: Mapping[str, Any]) -> str:
    parts = ["## Speed\n"]
    for kind, title in _TITLES.items():
        rows = [
            (name, row["per second"], row["ms"], row["times the peer"], row["of the peak"])
            for name, row in found["models"][kind].items()
        ]
        head = ("model", "per second", "ms each", "times the peer", "of the peak")
        tokens = found["tokens"][kind]
        parts.append(f"### {title}, {tokens} tokens\n\n{record.table(head, rows)}")
    peaks = found["peak, operations per second"]
    parts.append(
        "Of the peak: the operations of the model per second, counted without padding, as a share "
        "of what a large matrix product of the same type reaches in the same run on the same "
        "cores: "
        + ", ".join(f"{kind} {value} G/s" for kind, value in peaks.items())
        + ". `sentence-transformers` runs with its best batch size, which follows its name.\n"
    )
    return "\n".join(parts)


def _quality(found: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            kind,
            f"{row['ndcg@10']:.4f}",
            f"{row['ndcg@10 beyond float32']:+.4f}",
            f"{row['passages, largest difference']:.1e}",
            f"{row['passages, mean cosine']:.6f}",
            f"{row['questions, mean cosine']:.6f}",
            f"{min(row['passages, smallest cosine'], row['questions, smallest cosine']):.6f}",
        )
        for name in ("covidqa", "policyqa")
        for kind, row in found[name].items()
    ]
    head = (
        *("set", "precision", "nDCG@10", "beyond float32", "largest difference"),
        *("mean cosine, passages", "mean cosine, questions", "smallest cosine"),
    )
    alone = found["batch of 1 against 64, largest difference"]
    return (
        f"## Quality\n\nCompared with the vectors of `{PEER}`, on the test questions.\n\n"
        f"{record.table(head, rows)}\nA passage embedded alone differs from the same passage among "
        f"64 by at most {alone:.1e} (float32).\n"
    )


def _start(found: Mapping[str, Any]) -> str:
    rows = [
        (name, row["seconds"], row["of the peer's"], row["peak MB"])
        for name, row in found.items()
        if name != "machine"
    ]
    head = ("model", "s", "of the peer's", "MB resident at most")
    return (
        "## Cold start\n\nThe time from starting a process to its first vector. Our classes run "
        f"without PyTorch, from an exported folder.\n\n{record.table(head, rows)}"
    )


def _memory(found: Mapping[str, Any]) -> str:
    return (
        f"## Memory\n\n`nexus embed` in int8 over {found['passages']:,} texts, the first "
        f"{CHARACTERS} characters of passages: it used {found['MB in the third shard']} MB when "
        f"the third shard began, and at most {found['MB at most from there']} MB after that "
        "(anonymous memory, without memory-mapped files).\n"
    )
