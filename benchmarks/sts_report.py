"""Write the page on the STS Benchmark from recorded rows: `python -m benchmarks.sts_report`.

Reads `docs/results/sts-*.jsonl`, which `nexus sweep sts` and `nexus train-sts` append to, and
writes `docs/results/sts.md` and its plot.
"""

import argparse
from pathlib import Path

from nexus_integrations.training.sts import Row, read_rows
from nexus_integrations.training.summary import (
    PUBLISHED,
    Mean,
    by_name,
    gains,
    markdown_table,
    plot_sweep,
    table,
)

_HEAD = """# STS Benchmark: what training and dendrites give

Written by `python -m benchmarks.sts_report` from the rows in {files}; a row is one run, with its
settings, its epochs and the machine. Spearman's ρ of the cosine, all-MiniLM-L6-v2 (untrained: dev
.8672, test .8203). Heads and backbones are fitted on train, the epoch is chosen on dev, test is
evaluated once a run and chooses nothing. Intervals are 95 %, over seeds (Student's t); a single
seed has none.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    folder = parser.parse_args().results
    files = sorted(folder.glob("sts-*.jsonl"))
    rows = [row for file in files for row in read_rows(file)]
    plot_sweep(rows, folder / "sts.png")
    (folder / "sts.md").write_text(page(rows, [file.name for file in files]), encoding="utf-8")


def page(rows: list[Row], files: list[str]) -> str:
    """Return the page in Markdown."""
    names = ", ".join(f"[{name}]({name})" for name in files)
    groups = by_name(rows)
    against = [["recipe", "published, dev", "ours, dev", "ours, test", "seeds"]]
    for name, figure in PUBLISHED.items():
        group = groups.get(name, [])
        dev, test = (
            str(Mean.of([row[part] for row in group])) if group else "not run yet"
            for part in ("dev", "test")
        )
        against.append([name, f"{figure:.4f}", dev, test, str(len(group))])
    added = [["recipe", "dev", "test", "seeds"]]
    added += [[name, dev.signed, test.signed, str(dev.count)] for name, dev, test in gains(rows)]
    machines = sorted(
        {
            f"{row['machine']['processor']}, {row['machine']['cores']} cores, "
            f"{row['machine']['threads']} threads, torch {row['machine']['torch']}"
            for row in rows
        }
    )
    parts = [
        _HEAD.format(files=names),
        "## The published recipe\n",
        markdown_table(against) + "\n",
        "## What the dendrites added\n",
        "Each run with dendrites against the run of the same seed and settings without. In the "
        "published recipe and grid that is eight epochs against ten.\n",
        markdown_table(added) + "\n",
        "## All recipes\n",
        markdown_table(table(rows)) + "\n",
        "![Spearman per recipe](sts.png)\n",
        "Seconds include embedding where no earlier run of the sweep did it; the machine may have "
        f"been busy. Machines: {'; '.join(machines)}.\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
