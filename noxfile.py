"""What is checked beside `make test`, in environments of its own: `nox --list` names it.

    nox -s extras                      # each extra from a fresh wheel in an empty environment
    nox -s versions                    # both frameworks, oldest and newest, on every Python here
    nox -s "versions-3.13(newest)"     # one of them

Where the Python is that of `.venv`, the frameworks alone are installed anew and PyTorch is found in
`.venv`. Elsewhere there is no PyTorch, and the tests of conformance run on a tiny model.
"""

import os
import sys
import tempfile
from pathlib import Path

import nox

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # a Python that is not here is passed over
nox.options.sessions = ["extras", "versions"]

ROOT = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAIN = ROOT / ".venv" / "bin" / "python"

# pyenv's own programs: a shim runs only the version that a folder names.
for _folder in sorted(Path.home().glob(".pyenv/versions/3.*/bin")):
    os.environ["PATH"] += os.pathsep + str(_folder)
os.environ["UV_PYTHON_DOWNLOADS"] = "never"
os.environ["HF_HUB_OFFLINE"] = "1"


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("end", [nox.param("oldest", id="oldest"), nox.param("newest", id="newest")])
def versions(session: nox.Session, end: str) -> None:
    """Run the frameworks' tests with the oldest or newest dependencies that pyproject allows."""
    tests = ["tests/test_conformance_langchain.py", "tests/test_conformance_llama_index.py"]
    tools = ["pytest>=8.3", "pytest-asyncio>=0.25", "pytest-socket>=0.7", "pytest-timeout>=2.3"]
    tools.append("langchain-tests>=1.0")
    if _is_main(session):
        frameworks = [*EXTRAS["llama-index"], *EXTRAS["langchain"]]
        if end == "oldest":
            frameworks = [name.replace(">=", "==") for name in frameworks]
        session.install(*frameworks, *tools)
        _see_main(session)
        tests += ["tests/test_langchain.py", "tests/test_llama_index.py"]
    else:
        how = "lowest-direct" if end == "oldest" else "highest"
        session.install(
            f"--resolution={how}",
            "--editable",
            ".[runtime,llama-index,langchain]",
            *EXTRAS["nudge"],
            *tools,
        )
        session.install("onnx")  # it makes the tests' model
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", *tests)


@nox.session(python=False)
def extras(session: nox.Session) -> None:
    """Install each extra from a wheel, import what it promises; PyTorch comes with none of these.

    Extras that bring PyTorch are resolved and not installed: they are gigabytes.
    """
    with tempfile.TemporaryDirectory() as work:
        session.run("uv", "build", "--quiet", "--wheel", "--out-dir", work, str(ROOT))
        (wheel,) = Path(work).glob("*.whl")
        for names, program in _PROMISED.items():
            _try_out(session, Path(work), wheel, names, program)
        for name in ("train", "dendrites", "bundled", "all"):
            _resolve(session, Path(work), wheel, name)


def _is_main(session: nox.Session) -> bool:
    """Tell whether this session has the Python of `.venv`, where PyTorch is."""
    if not MAIN.exists():
        return False
    found = session.run(
        str(MAIN),
        "-c",
        "import sys, torch; print('%d.%d' % sys.version_info[:2])",
        external=True,
        silent=True,
        success_codes=[0, 1],
    )
    return str(found).strip() == session.python


def _see_main(session: nox.Session) -> None:
    """Let the session find in `.venv` what it does not have itself."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    main = str(session.run(str(MAIN), "-c", where, external=True, silent=True)).strip()
    own = str(session.run("python", "-c", where, silent=True)).strip()
    (Path(own) / "zz_main.pth").write_text(main + "\n", encoding="utf-8")


def _try_out(session: nox.Session, work: Path, wheel: Path, names: str, program: str) -> None:
    """Run a program in an empty environment that has these extras alone."""
    environment = work / "environment"
    session.run("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(environment))
    wanted = f"{wheel}[{names}]" if names else str(wheel)
    session.run("uv", "pip", "install", "--quiet", "--python", str(environment), wanted)
    python = str(environment / "bin" / "python")
    with session.chdir(work):
        session.run(python, "-c", program, external=True)
        session.run(
            python,
            "-c",
            "from importlib.util import find_spec as f; assert f('torch') is None, 'PyTorch came'",
            external=True,
        )
    session.log(f"ok: {names or 'base'}")


def _resolve(session: nox.Session, work: Path, wheel: Path, name: str) -> None:
    """Find versions that fit together, without installing them."""
    environment = work / "environment"
    session.run("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(environment))
    command = ["uv", "pip", "install", "--quiet", "--dry-run", "--python", str(environment)]
    session.run(*command, f"{wheel}[{name}]")
    session.log(f"ok: {name} resolves")


_MISSING = """
import nexus_integrations
try:
    nexus_integrations.finetune
except ImportError as error:
    assert 'pip install "nexus-integrations[train]"' in str(error), error
else:
    raise SystemExit("finetune was imported")
"""
_VECTORS = """
import numpy as np
from nexus_integrations import DendriticHead, RetrievalDataset
from nexus_integrations.index import MemoryIndex
data = RetrievalDataset(queries={"q": "?"}, corpus={"a": "1", "b": "2"}, relevant_docs={"q": ["a"]})
index = MemoryIndex(list(data.corpus), np.eye(2, dtype=np.float32))
assert DendriticHead.untrained(2, 0).transform(index.vectors(["a"])).tolist() == [[1, 0]]
assert index.search(np.eye(2, dtype=np.float32)[1:], 1).ids == [["b"]]
"""
_NUDGE = """
from hashlib import sha256
from nexus_integrations import DenseRetriever, NudgeConfig, evaluate, nudge_index
class Encoder:
    dimension, fingerprint = 2, sha256(b"two").hexdigest()
    def encode_queries(self, texts): return np.array([[0.6, 0.8]] * len(texts), np.float32)
    encode_documents = encode_queries
assert evaluate(DenseRetriever(index, Encoder()), data).metrics["recall@1"] == 0
result = nudge_index(index, Encoder(), data, config=NudgeConfig(gamma=1.0))
assert evaluate(DenseRetriever(index, Encoder()), data).metrics["recall@1"] == 1
result.undo(index)
assert evaluate(DenseRetriever(index, Encoder()), data).metrics["recall@1"] == 0
"""
_LEXICAL = """
from nexus_integrations import LexicalIndex
words = LexicalIndex()
words.add(["a", "b"], ["the nurse signs", "the fridge beeps"])
assert words.search(["who signs?"], 1).ids == [["a"]]
"""
_PROMISED = {
    "": _VECTORS + _MISSING,
    "nudge": _VECTORS + _NUDGE + _MISSING,
    "lexical": _LEXICAL + _MISSING,
    "runtime": "from nexus_integrations.backends.onnx import OnnxBackbone; import tokenizers"
    + _MISSING,
    "runtime,llama-index": "from nexus_integrations.llama_index import NexusEmbedding",
    "runtime,langchain": "from nexus_integrations.langchain import NexusEmbeddings as E; E()",
    "faiss": "from nexus_integrations.index.faiss import FaissIndex",
    "chroma": "from nexus_integrations.index.chroma import ChromaIndex",
    "qdrant": "from nexus_integrations.index.qdrant import QdrantIndex",
    "lancedb": "from nexus_integrations.index.lancedb import LanceDBIndex",
    "postgres": "from nexus_integrations.index.postgres import PostgresIndex",
    "milvus": "from nexus_integrations.index.milvus import MilvusIndex",
    "jobs": "from nexus_integrations.jobs import embed_corpus",
    "ray": "import ray.data",
}
