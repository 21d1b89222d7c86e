"""Every snippet of README and docs runs; the site is built strictly and loads nothing."""

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from pydoc import locate

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nexus_integrations import DendriticEncoder, FinetuneConfig, RetrievalDataset, TuneConfig
from nexus_integrations.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

# Blocks that no test can run, by what they begin with, each for a reason.
_SERVER = "asks a PostgreSQL server; tests/test_*_stores.py start one"
NOT_RUN = {
    "from llama_index.vector_stores.postgres import": _SERVER,
    "from langchain_core.documents import Document\nfrom langchain_postgres import": _SERVER,
}

# Pages whose commands run, in order; of the others the options alone are checked.
COMMANDS_RUN = ("README.md", "quickstart/command-line.md")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT if page.parent == ROOT else ROOT / "docs").as_posix()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The page's fenced blocks of a language: the line that each begins on, and its text."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start(3)), textwrap.dedent(found[3]))
        for found in FENCE.finditer(text)
        if found[2] == language
    ]


def commands(page: Path) -> list[list[str]]:
    """Every `nexus` command of the page's shell blocks, as its arguments."""
    lines = [
        line
        for _, block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("nexus ")
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def workplace(clinic, tmp_path, monkeypatch):
    """A folder with the files that the pages speak of: the demo corpus in every layout."""
    parts = dict(zip(("train", "dev", "test"), clinic, strict=True))
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    whole: dict[str, str] = {}
    for split, part in parts.items():
        part.to_json(tmp_path / f"{split}.json")
        whole |= part.queries
        rows = [f"{q}\t{d}\t1" for q, found in part.relevant_docs.items() for d in found]
        header = "query-id\tcorpus-id\tscore"
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n")
    for file, texts in (("corpus", clinic[0].corpus), ("queries", whole)):
        lines = [json.dumps({"_id": id_, "text": text}) for id_, text in texts.items()]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    passages = [json.dumps({"id": id_, "text": t}) for id_, t in clinic[0].corpus.items()]
    (tmp_path / "passages.jsonl").write_text("\n".join(passages) + "\n")
    quote = next(iter(clinic[0].corpus.values()))[:60].replace('"', '""')
    (tmp_path / "questions.csv").write_text(f'question,answer\nWhat?,"{quote}"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def given(clinic) -> dict[str, object]:
    """The names that README's snippets take for granted: a reader's own nodes and documents."""
    from langchain_core.documents import Document
    from llama_index.core.schema import TextNode

    corpus = clinic[0].corpus
    joined = RetrievalDataset.joined(clinic[0], clinic[1])
    return {
        "__name__": "snippet",
        "corpus": corpus,
        "nodes": [TextNode(id_=id_, text=text) for id_, text in corpus.items()],
        "documents": [Document(id=id_, page_content=text) for id_, text in corpus.items()],
        "pairs": [(joined.queries[q], found) for q, found in joined.relevant_docs.items()],
    }


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, str], np.ndarray]:
    """The real model's vectors of the texts that pages have in common, by role and text."""
    return {}


@pytest.fixture
def quick(encoder, known, monkeypatch, perforatedai):
    """Embed a text once for all pages; tune briefly and grow no dendrites by default.

    README's commands grow them, as test_perforated and the demo do.
    """
    embed, digest = DendriticEncoder.backbone_vectors, encoder.backbone.digest

    def embed_once(self, texts, role):
        if self.backbone.digest != digest or not isinstance(texts, (list, tuple)):
            return embed(self, texts, role)
        new = [text for text in dict.fromkeys(texts) if (role, text) not in known]
        if new:
            rows = embed(self, new, role)
            known.update({(role, text): row for text, row in zip(new, rows, strict=True)})
        return np.array([known[role, text] for text in texts], dtype=np.float32)

    monkeypatch.setattr(DendriticEncoder, "backbone_vectors", embed_once)
    monkeypatch.setitem(FinetuneConfig.__init__.__kwdefaults__, "dendrites", 0)
    brief = {"heads": FinetuneConfig(dendrites=0, epochs=3), "folds": 2, "weights": (0.0, 0.1, 1.0)}
    for setting, value in brief.items():
        monkeypatch.setitem(TuneConfig.__init__.__kwdefaults__, setting, value)


@pytest.fixture
def settings():
    """What pages leave behind in a process: LlamaIndex's settings, and Chroma's open folders."""
    from chromadb.api.shared_system_client import SharedSystemClient
    from llama_index.core import Settings

    before = Settings._embed_model
    SharedSystemClient.clear_system_cache()  # by relative path, whatever folder it is relative to
    yield
    Settings._embed_model = before
    SharedSystemClient.clear_system_cache()


@pytest.mark.model
@pytest.mark.usefixtures("quick", "workplace", "no_network", "settings")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_snippets_run(page, given):
    """The page's Python blocks run in order, as one program, without a network."""
    for line, code in blocks(page, "python"):
        if not any(code.startswith(start) for start in NOT_RUN):
            exec(compile("\n" * line + code, str(page), "exec"), given)


@pytest.mark.model
@pytest.mark.usefixtures("quick", "no_network")
@pytest.mark.parametrize("name", COMMANDS_RUN)
def test_commands_run(name, workplace):
    """The page's commands run in order, each with exit status 0."""
    page, told = ROOT / name if name == "README.md" else ROOT / "docs" / name, ""
    for arguments in commands(page):
        output = None
        if ">" in arguments:
            arguments, output = arguments[: arguments.index(">")], arguments[-1]
        done = CliRunner().invoke(app, arguments)
        if arguments[:2] == ["nudge", "undo"] and "holds no nudge to undo" in done.output:
            assert "The nudge was not written" in told  # these questions did not gain
            continue
        told += done.output
        assert done.exit_code == 0, f"nexus {shlex.join(arguments)}: {told}"
        if output is not None:
            (workplace / output).write_text(done.stdout)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_commands_have_these_options(page):
    """Every command and option that the page writes exists."""
    group = typer.main.get_command(app)
    for arguments in commands(page):
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        if arguments[-1] not in ("--help", "-h"):
            command = group.commands[arguments[0]]
            command.make_context(arguments[0], arguments[1:]).close()


def test_what_is_not_run_is_still_there():
    """The list of blocks that are not run names blocks that exist."""
    every = [code for page in PAGES for _, code in blocks(page, "python")]
    for start in NOT_RUN:
        assert any(code.startswith(start) for code in every), start


def test_pictures_are_drawn(tmp_path):
    """The script that draws the pictures draws all that the pages show."""
    script = [sys.executable, str(ROOT / "docs" / "pictures.py"), str(tmp_path)]
    subprocess.run(script, check=True, timeout=600)
    shown = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == shown - {"report.png"}  # a screenshot
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in sorted(shown) if f"images/{name}" not in pages] == []


# The site


class Addresses(HTMLParser):
    """Collects what a page would load by itself."""

    loading = frozenset({"script", "img", "link", "iframe", "source", "video", "audio", "object"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev", "alternate"):
            return
        if tag in self.loading:
            self.found += [v for k, v in attrs if k in ("src", "href", "data", "srcset") and v]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation, built strictly."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_from_elsewhere(site):
    """No script, style, font or image of the built site comes from another machine."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Addresses()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found
        assert not [one for one in parser.found if re.match(r"(\w+:)?//", one)], page
    for style in site.rglob("*.css"):
        loaded = re.findall(r"(?:url\(|@import )[\"']?((?:\w+:)?//[^)\"']*)", style.read_text())
        assert not loaded, (style, loaded)


def test_every_page_is_in_the_navigation(site):
    """Recorded results too, which come without an edit of mkdocs.yml; and nothing but pages."""
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        address = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f'href="{address}" class="md-nav__link' in menu, page
    titles = re.findall(r'href="results/[^"]*".*?md-ellipsis">\s*(.*?)\s*<', menu, re.S)
    assert len(titles) == len(set(titles)) == len(list((ROOT / "docs" / "results").glob("*.md")))
    assert not list(site.rglob("*.py"))


def test_every_public_name_is_in_the_reference(site):
    """Each name that the root and the framework folders export has its entry."""
    import nexus_integrations
    from nexus_integrations import index, langchain, llama_index, nudge

    pages = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    shown = [locate(name) for name in set(re.findall(r'id="(nexus_integrations\.[\w.]+)"', pages))]
    for module in (nexus_integrations, llama_index, langchain, nudge, index):
        for name in module.__all__:
            home = getattr(module, name)
            assert any(home is one for one in shown), f"{module.__name__}.{name}"
