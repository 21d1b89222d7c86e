"""The page on the STS Benchmark, from recorded rows: `docs/results/sts.md` and its plot."""

from pathlib import Path

from benchmarks import record
from benchmarks.mean import Mean
from benchmarks.record import Row, read_rows, table
from benchmarks.sts.summary import PUBLISHED, by_name, figures, gains, plot_sweep

_HEAD = """# STS Benchmark: what training and dendrites give

Written by `python -m benchmarks.sts report` from the rows in {files}; a row is one run, with its
settings, its epochs and the machine. Spearman's ρ of the cosine, all-MiniLM-L6-v2 (untrained: dev
.8672, test .8203). Heads and backbones are fitted on train, the epoch is chosen on dev, test is
evaluated once a run and chooses nothing. Intervals are 95 %, over seeds (Student's t); a single
seed has none.
"""


def write_page(folder: Path) -> None:
    """Read `sts-*.jsonl` in `folder`; write `sts.md` and `sts.png` beside them."""
    files = sorted(folder.glob("sts-*.jsonl"))
    rows = read_rows(*files)
    plot_sweep(rows, folder / "sts.png")
    record.write_page(folder / "sts", page(rows, [file.name for file in files]))


def page(rows: list[Row], files: list[str]) -> str:
    """Return the page in Markdown."""
    names = ", ".join(f"[{name}]({name})" for name in files)
    groups = by_name(rows)
    against = []
    for name, figure in PUBLISHED.items():
        group = groups.get(name, [])
        dev, test = (
            str(Mean.of([row[part] for row in group])) if group else "not run yet"
            for part in ("dev", "test")
        )
        against.append([name, f"{figure:.4f}", dev, test, str(len(group))])
    added = [[name, dev.signed, test.signed, str(dev.count)] for name, dev, test in gains(rows)]
    machines = sorted({_machine(row["machine"]) for row in rows})
    parts = [
        _HEAD.format(files=names),
        "## The published recipe\n",
        table(["recipe", "published, dev", "ours, dev", "ours, test", "seeds"], against),
        "## What the dendrites added\n",
        "Each run with dendrites against the run of the same seed and settings without. In the "
        "published recipe and grid that is eight epochs against ten.\n",
        table(["recipe", "dev", "test", "seeds"], added),
        "## All recipes\n",
        table(*figures(rows)),
        "![Spearman per recipe](sts.png)\n",
        "Seconds include embedding where no earlier run of the sweep did it; the machine may have "
        f"been busy. Machines: {'; '.join(machines)}.\n",
    ]
    return "\n".join(parts)


def _machine(found: Row) -> str:
    parts = [
        found["processor"],
        *([f"{found['cores']} cores"] if "cores" in found else []),
        *([f"{found['threads']} threads"] if "threads" in found else []),
        f"torch {found['torch']}",
    ]
    return ", ".join(parts)
