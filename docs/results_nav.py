"""Hook of mkdocs: every page in docs/results stands under Results in the navigation."""

from collections import Counter
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> None:
    """Add the pages; of several with one heading each also bears what its file's name adds."""
    (results,) = (part["Results"] for part in config.nav or [] if "Results" in part)
    pages = sorted((Path(config.docs_dir) / "results").glob("*.md"))
    headings = [path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in pages]
    count = Counter(headings)
    for path, heading in zip(pages, headings, strict=True):
        suffix = path.stem.partition("-")[2]
        title = f"{heading}: {suffix}" if suffix and count[heading] > 1 else heading
        results.append({title: f"results/{path.name}"})
