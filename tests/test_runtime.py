"""The install without PyTorch, and one encoder in many callers, threads and processes."""

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nexus_integrations.backends.folder import read_runtime
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.frameworks.queue import EmbeddingQueue
from nexus_integrations.langchain import NexusEmbeddings
from nexus_integrations.llama_index import NexusEmbedding

pytestmark = pytest.mark.filterwarnings("ignore:.*of the texts:UserWarning")

ROOT = Path(__file__).parent.parent
TEXTS = [
    "who signs the form",
    "two\nlines\r\nand a\ttab",
    "",
    "   ",
    "very long " * 3000,
    "an emoji \U0001f600, a family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "ümlaut, 한국어, 漢字",
    "a\ud800b",
    "x",
]


def make_head(dendrites: int, seed: int) -> DendriticHead:
    rng = np.random.default_rng(seed)
    arrays = DendriticHead.untrained(16, dendrites).arrays
    return DendriticHead(
        **{name: 0.3 * rng.normal(size=array.shape) for name, array in arrays.items()}
    )


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory) -> SimpleNamespace:
    """An encoder with a head per role, run by PyTorch; where it was saved, and exported to."""
    folder = tmp_path_factory.mktemp("runtime")
    encoder = DendriticEncoder.load(tiny_model, backend="torch").with_heads(
        query_head=make_head(2, 0), document_head=make_head(0, 1)
    )
    encoder.save(folder / "saved")
    encoder.export(folder / "exported")
    return SimpleNamespace(encoder=encoder, saved=folder / "saved", exported=folder / "exported")


def queries_and_documents(model: object, texts: list[str]) -> list[np.ndarray]:
    """Embed by an encoder or by either framework's class."""
    if isinstance(model, DendriticEncoder):
        return [model.encode_queries(texts), model.encode_documents(texts)]
    if isinstance(model, NexusEmbedding):
        documents = model.get_text_embedding_batch(texts)
        return [
            np.array([model.get_query_embedding(text) for text in texts]),
            np.array(documents),
        ]
    return [
        np.array([model.embed_query(text) for text in texts]),
        np.array(model.embed_documents(texts)),
    ]


# The exported folder.


def test_an_exported_folder_gives_the_same_vectors(tuned):
    """By ONNX Runtime, to 1e-5, for texts of all kinds, under fingerprints of its own bytes."""
    exported = DendriticEncoder.load(tuned.exported)
    assert exported.backbone.backend == "onnx"
    assert exported.fingerprint != tuned.encoder.fingerprint
    assert exported.document_fingerprint != tuned.encoder.document_fingerprint
    assert read_runtime(tuned.exported / "backbone").made_from == tuned.encoder.backbone.digest
    for ours, theirs in zip(
        queries_and_documents(exported, TEXTS),
        queries_and_documents(tuned.encoder, TEXTS),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_exported_folder_holds_no_pickle_and_no_text(tuned):
    """ONNX, safetensors and JSON, without a path of this machine; readable as the folder is."""
    files = [path for path in tuned.exported.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".onnx", ".data", ".safetensors", ".json"}
    graph = (tuned.exported / "backbone" / "model.onnx").read_bytes()
    for path in (ROOT, Path(np.__file__).parents[1], Path.home()):
        assert str(path).encode() not in graph
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize(
    "name",
    ["query_head.safetensors", "backbone/runtime.json", "backbone/model.onnx",
     "backbone/tokenizer.json"],
)  # fmt: skip
def test_an_altered_or_missing_file_is_refused(tuned, tmp_path, name):
    """Through the two manifests every file is held against its hash."""
    shutil.copytree(tuned.exported, tmp_path / "exported")
    file = tmp_path / "exported" / name
    whole = file.read_bytes()
    file.write_bytes(whole + b" ")
    with pytest.raises(ValueError, match="was altered: the SHA-256"):
        DendriticEncoder.load(tmp_path / "exported")
    file.unlink()
    with pytest.raises(ValueError, match=r"is missing|holds no"):
        DendriticEncoder.load(tmp_path / "exported")


def test_a_saved_encoder_is_not_overwritten_by_an_export(tuned, tmp_path):
    """Its weights are more than a graph; an earlier export is replaced."""
    shutil.copytree(tuned.saved, tmp_path / "saved")
    exported = DendriticEncoder.load(tuned.exported)
    with pytest.raises(FileExistsError, match="something other than an exported encoder"):
        exported.export(tmp_path / "saved")
    for encoder in (exported, exported.with_heads(query_head=None, document_head=None)):
        encoder.export(tmp_path / "exported")
        assert DendriticEncoder.load(tmp_path / "exported").fingerprint == encoder.fingerprint


def test_an_exported_encoder_is_copied(tuned, tmp_path):
    """Saved or exported again it stays what it is, with other heads too."""
    exported = DendriticEncoder.load(tuned.exported)
    other = exported.with_heads(query_head=None, document_head=exported.document_head)
    other.save(tmp_path / "saved")
    other.export(tmp_path / "exported")
    for folder in ("saved", "exported"):
        again = DendriticEncoder.load(tmp_path / folder)
        assert again.fingerprint == other.fingerprint != exported.fingerprint
        np.testing.assert_array_equal(again.encode_documents(["a"]), other.encode_documents(["a"]))


def test_an_exported_encoder_is_no_sentence_transformers_model(tuned, tmp_path):
    """It holds no PyTorch weights."""
    encoder = DendriticEncoder.load(tuned.exported).with_heads(query_head=None, document_head=None)
    with pytest.raises(ValueError, match="was exported for ONNX Runtime"):
        encoder.save_sentence_transformers(tmp_path / "plain")


def test_an_onnx_encoder_is_saved_as_a_sentence_transformers_model(tiny_model, tmp_path):
    """Where the model's folder is at hand, how it runs does not matter."""
    from sentence_transformers import SentenceTransformer

    encoder = DendriticEncoder.load(tiny_model, backend="onnx")
    encoder.save_sentence_transformers(tmp_path / "plain")
    theirs = SentenceTransformer(str(tmp_path / "plain"), device="cpu").encode(
        ["a text"], normalize_embeddings=True
    )
    np.testing.assert_allclose(theirs, encoder.encode_queries(["a text"]), atol=1e-6)


def test_export_by_command(tuned, tmp_path):
    """`nexus export` tells what it wrote, as JSON for programs."""
    from typer.testing import CliRunner

    from nexus_integrations.cli import app

    arguments = ["export", str(tmp_path / "edge"), "--model", str(tuned.saved), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["precision"], told["dimension"]) == ("float32", 16)
    assert told["fingerprint"] == DendriticEncoder.load(tmp_path / "edge").fingerprint
    size = sum(file.stat().st_size for file in (tmp_path / "edge").rglob("*") if file.is_file())
    assert told["bytes"] == size
    saved = str(tuned.saved)
    again = CliRunner().invoke(app, ["export", saved, "--model", saved])
    assert again.exit_code == 1
    assert "is not empty: --force overwrites what is in it" in again.stderr
    again = CliRunner().invoke(app, ["export", saved, "--model", saved, "--force"])
    assert again.exit_code == 1
    assert "something other than an exported encoder" in again.stderr


# Parity of both frameworks and both backends.


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("framework", [NexusEmbedding, NexusEmbeddings])
def test_frameworks_and_backends_agree(tuned, framework, backend):
    """Texts of all kinds, one by one and together, to 1e-5 of PyTorch's."""
    model = framework(model=str(tuned.saved), backend=backend)
    assert model.encoder.backbone.backend == backend
    for ours, theirs in zip(
        queries_and_documents(model, TEXTS),
        queries_and_documents(tuned.encoder, TEXTS),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("framework", [NexusEmbedding, NexusEmbeddings])
def test_one_text_and_64_give_equal_vectors(clinic, encoder, framework, backend):
    """The real model: passages alone and among 63 others, to 1e-6."""
    model = framework(backend=backend)
    passages = list(clinic[0].corpus.values())[:60]
    texts = [*passages, "", "line\nbreak", "\U0001f600", "long " * 900]
    if framework is NexusEmbedding:
        together = model.get_text_embedding_batch(texts)
        alone = [model.get_text_embedding(text) for text in texts]
    else:
        together = model.embed_documents(texts)
        alone = [model.embed_documents([text])[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, encoder.encode_documents(texts), atol=1e-5)


# Precision: other vectors, another fingerprint.


def test_backends_share_a_fingerprint_and_precisions_do_not(tuned):
    """A folder saved in float32 runs in bfloat16, under a fingerprint of its own."""
    onnx = DendriticEncoder.load(tuned.saved, backend="onnx")
    bfloat16 = DendriticEncoder.load(tuned.saved, precision="bfloat16")
    assert onnx.fingerprint == tuned.encoder.fingerprint
    assert bfloat16.backbone.precision == "bfloat16"
    assert bfloat16.fingerprint != tuned.encoder.fingerprint
    assert bfloat16.document_fingerprint != tuned.encoder.document_fingerprint
    cosine = (bfloat16.encode_queries(["a text"]) * onnx.encode_queries(["a text"])).sum()
    assert cosine > 0.99


def test_what_runs_in_bfloat16_is_saved_in_float32(tuned, tmp_path):
    """How an encoder runs is no property of what it is."""
    DendriticEncoder.load(tuned.saved, precision="bfloat16").save(tmp_path / "again")
    assert DendriticEncoder.load(tmp_path / "again").fingerprint == tuned.encoder.fingerprint


@pytest.mark.parametrize("framework", [NexusEmbedding, NexusEmbeddings])
def test_a_recorded_fingerprint_holds_for_one_precision(tuned, framework):
    """Vectors of two precisions do not mix unnoticed; those of two backends are the same."""
    described = framework(model=str(tuned.saved), backend="torch").model_dump()
    described.pop("class_name", None)
    framework(**{**described, "backend": "onnx"}).encoder  # noqa: B018
    with pytest.raises(ValueError, match=r"in bfloat16 .* or runs in another precision"):
        framework(**{**described, "backend": "auto", "precision": "bfloat16"}).encoder  # noqa: B018


def test_cache_namespaces_follow_the_precision(tuned):
    """A cache of one precision's vectors is not read in another."""
    float32, onnx, bfloat16 = (
        NexusEmbeddings(model=str(tuned.saved), **how)
        for how in ({"backend": "torch"}, {"backend": "onnx"}, {"precision": "bfloat16"})
    )
    for role in ("query", "document"):
        assert float32.cache_namespace(role) == onnx.cache_namespace(role)
        assert float32.cache_namespace(role) != bfloat16.cache_namespace(role)


@pytest.mark.parametrize("framework", [NexusEmbedding, NexusEmbeddings])
@pytest.mark.parametrize(
    ("field", "value"), [("backend", "tensorrt"), ("precision", "int4"), ("num_threads", 0)]
)
def test_options_are_checked(framework, field, value):
    """A value that is none is refused on construction."""
    with pytest.raises(ValueError, match=field):
        framework(**{field: value})


@pytest.mark.parametrize("framework", [NexusEmbedding, NexusEmbeddings])
def test_options_travel(tuned, framework):
    """Through pickle and description; instances share an encoder where all of them agree."""
    how = {"backend": "onnx", "precision": "float32", "num_threads": 1, "micro_batching": False}
    model = framework(model=str(tuned.saved), **how)
    described = model.model_dump()
    described.pop("class_name", None)
    for again in (pickle.loads(pickle.dumps(model)), framework(**described)):
        assert {name: getattr(again, name) for name in how} == how
        assert again.encoder is model.encoder
    other = framework(model=str(tuned.saved), **{**how, "num_threads": 2})
    assert other.encoder is not model.encoder
    model.num_threads = 2
    with pytest.raises(ValueError, match="changed after construction"):
        model.encoder  # noqa: B018


# Many callers.


async def asked_together(model: NexusEmbeddings, texts: list[str]) -> list[object]:
    return await asyncio.gather(
        *(model.aembed_query(text) for text in texts), return_exceptions=True
    )


@pytest.fixture
def counted(table_encoder):
    """An encoder of ten texts that counts its batches, and waits at a gate for the first."""
    encoder = table_encoder({f"t{n}": (1, n) for n in range(10)})
    encode, gate, batches = encoder.backbone.encode, threading.Event(), []

    def counting(texts, role):
        batches.append((role, len(texts)))
        assert gate.wait(30)
        return encode(texts, role)

    encoder.backbone.encode = counting
    return SimpleNamespace(encoder=encoder, gate=gate, batches=batches)


@pytest.mark.parametrize(("micro_batching", "most"), [(True, 2), (False, 10)])
async def test_concurrent_queries_share_batches(counted, micro_batching, most):
    """Ten coroutines make one batch or two; without micro-batching, one each."""
    model = NexusEmbeddings.from_encoder(counted.encoder)
    model.micro_batching = micro_batching
    texts = [f"t{n}" for n in range(10)]
    asked = asyncio.create_task(asked_together(model, texts))
    while not counted.batches:  # all ask before the first of them goes on
        await asyncio.sleep(0.01)
    counted.gate.set()
    rows = await asked
    np.testing.assert_allclose(rows, counted.encoder.encode_queries(texts), atol=1e-6)
    assert len(counted.batches) - 1 <= most
    assert (len(counted.batches) - 1 == 10) == (not micro_batching)


def test_threads_share_batches(counted, monkeypatch):
    """What threads of a server ask while a batch runs is the next batch."""
    asked, submit = [], EmbeddingQueue.submit

    def counting(*arguments, **how):
        future = submit(*arguments, **how)
        asked.append(future)
        return future

    monkeypatch.setattr(EmbeddingQueue, "submit", counting)
    model = NexusEmbedding.from_encoder(counted.encoder)
    texts = [f"t{n}" for n in range(10)]
    with ThreadPoolExecutor(10) as pool:
        rows = [pool.submit(model.get_query_embedding, text) for text in texts]
        while len(asked) < 10:
            time.sleep(0.01)
        counted.gate.set()
        vectors = [row.result(30) for row in rows]
    assert len(counted.batches) <= 2  # one where all had asked before the first began
    np.testing.assert_allclose(vectors, counted.encoder.encode_queries(texts), atol=1e-6)


async def test_one_bad_text_is_one_callers_error(counted):
    """None, and a text that the model does not know, fail; their neighbours do not."""
    counted.gate.set()
    model = NexusEmbeddings.from_encoder(counted.encoder)
    rows = await asked_together(model, ["t1", None, "unknown", "t2"])
    assert isinstance(rows[1], TypeError)
    assert isinstance(rows[2], KeyError)
    np.testing.assert_allclose(
        [rows[0], rows[3]], counted.encoder.encode_queries(["t1", "t2"]), atol=1e-6
    )


async def test_a_cancelled_caller_hurts_nobody(counted):
    """Others get their vectors, whether it was cancelled before its batch or in it."""
    model = NexusEmbeddings.from_encoder(counted.encoder)
    first, second, third, fourth = (
        asyncio.create_task(model.aembed_query(f"t{n}")) for n in range(4)
    )
    while not counted.batches:
        await asyncio.sleep(0.01)
    first.cancel()
    third.cancel()
    await asyncio.sleep(0.05)
    counted.gate.set()
    rows = await asyncio.gather(first, second, third, fourth, return_exceptions=True)
    assert isinstance(rows[0], asyncio.CancelledError)
    assert isinstance(rows[2], asyncio.CancelledError)
    expected = counted.encoder.encode_queries(["t1", "t3"])
    np.testing.assert_allclose([rows[1], rows[3]], expected, atol=1e-6)


async def test_an_event_loop_that_ends_hurts_nobody(counted):
    """A call of a loop that was closed meanwhile leaves the thread at work for others."""
    model = NexusEmbeddings.from_encoder(counted.encoder)

    async def give_up():
        asyncio.ensure_future(model.aembed_query("t1"))  # noqa: RUF006
        await asyncio.sleep(0.1)

    thread = threading.Thread(target=lambda: asyncio.run(give_up()))
    thread.start()
    thread.join()
    counted.gate.set()
    assert len(await model.aembed_query("t2")) == 2


async def test_a_query_overtakes_a_long_document_job(counted, monkeypatch):
    """It is embedded after the part that is running, not after the job."""
    monkeypatch.setattr("nexus_integrations.frameworks.queue._TEXTS", 2)
    model = NexusEmbeddings.from_encoder(counted.encoder)
    job = asyncio.create_task(model.aembed_documents([f"t{n}" for n in range(10)]))
    while not counted.batches:
        await asyncio.sleep(0.01)
    query = asyncio.create_task(model.aembed_query("t1"))
    await asyncio.sleep(0.05)
    counted.gate.set()
    await asyncio.gather(job, query)
    assert [role for role, _ in counted.batches].index("query") == 1
    assert len(counted.batches) == 6


def test_one_thread_embeds_for_all(tuned):
    """32 threads and both frameworks' classes over one encoder start one embedding thread."""

    def embedding_threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name.startswith("nexus-embedding")}

    before = embedding_threads()
    # With a number of threads that no other test asks for, so that the encoder is a new one.
    ours = NexusEmbedding(model=str(tuned.saved), backend="onnx", num_threads=3)
    theirs = NexusEmbeddings(model=str(tuned.saved), backend="onnx", num_threads=3)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ours.get_query_embedding, TEXTS[:2] * 32))
        list(pool.map(theirs.embed_query, TEXTS[:2] * 32))
    assert ours.encoder is theirs.encoder
    assert len(embedding_threads() - before) == 1


# Other processes. Each program runs in a fresh interpreter.

BLOCK = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
TORCH = ("torch", "transformers", "sentence_transformers")

EMBED = """
import json, sys, warnings
warnings.simplefilter("ignore")
folder, texts = sys.argv[1], json.loads(sys.argv[2])
if sys.argv[3] == "llama_index":
    from nexus_integrations.llama_index import NexusEmbedding
    model = NexusEmbedding(model=folder)
    queries = [model.get_query_embedding(text) for text in texts]
    documents = model.get_text_embedding_batch(texts)
    again = NexusEmbedding(model=folder)
elif sys.argv[3] == "langchain":
    from nexus_integrations.langchain import NexusEmbeddings
    model = NexusEmbeddings(model=folder)
    queries = [model.embed_query(text) for text in texts]
    documents = model.embed_documents(texts)
    again = NexusEmbeddings(model=folder)
else:
    from nexus_integrations import DendriticEncoder
    model = again = DendriticEncoder.load(folder)
    queries = model.encode_queries(texts).tolist()
    documents = model.encode_documents(texts).tolist()
if sys.argv[3] != "core":
    assert again.encoder is model.encoder
foreign = {"torch", "transformers", "sentence_transformers"} & set(sys.modules)
assert not foreign, foreign
print(json.dumps([queries, documents, model.fingerprint]))
"""


def fresh(program: str, *arguments: str, python: str = sys.executable, **environment: str):
    """Run a program; return what it printed, or fail with what it said."""
    done = subprocess.run(
        [python, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_embedded(output: str, tuned: SimpleNamespace, texts: list[str]) -> None:
    encoder = tuned.encoder
    queries, documents, fingerprint = json.loads(output)
    np.testing.assert_allclose(queries, encoder.encode_queries(texts), atol=1e-5)
    np.testing.assert_allclose(documents, encoder.encode_documents(texts), atol=1e-5)
    assert fingerprint == DendriticEncoder.load(tuned.exported).fingerprint


@pytest.mark.parametrize("api", ["core", "llama_index", "langchain"])
def test_no_torch_is_imported(tuned, package_environment, api):
    """With every import of PyTorch's family refused, the vectors are those of the full install."""
    output = fresh(
        BLOCK.format(names=(*TORCH, "scipy", "huggingface_hub", "onnx", "typer")) + EMBED,
        str(tuned.exported),
        json.dumps(TEXTS),
        api,
        **package_environment,
    )
    check_embedded(output, tuned, TEXTS)


@pytest.fixture(scope="module")
def runtime_python() -> str:
    """The interpreter of the environment that `make test` installs without PyTorch."""
    python = ROOT / ".venv" / "runtime" / "bin" / "python"
    if not python.is_file():
        pytest.skip("make .venv/installed-runtime makes the environment without PyTorch")
    return str(python)


@pytest.mark.runtime
@pytest.mark.parametrize("api", ["core", "llama_index", "langchain"])
def test_the_runtime_install_alone(tuned, runtime_python, api):
    """What `pip install "nexus-integrations[runtime,...]"` brings embeds like the full install."""
    others = {"core": ("llama_index", "langchain_core"), "llama_index": ("langchain_core",)}
    check = "import importlib.metadata as m\n"
    check += "names = {d.metadata['Name'].lower() for d in m.distributions()}\n"
    check += "assert not names & {'torch', 'transformers', 'sentence-transformers', 'scipy'}\n"
    output = fresh(
        BLOCK.format(names=others.get(api, ("llama_index",))) + check + EMBED,
        str(tuned.exported),
        json.dumps(TEXTS),
        api,
        python=runtime_python,
        PYTHONPATH="",
    )
    check_embedded(output, tuned, TEXTS)


@pytest.mark.runtime
def test_the_runtime_install_says_what_is_missing(tuned, runtime_python, tmp_path):
    """A model that is not exported, and the command line, with the line that installs it."""
    program = """
import subprocess, sys
from nexus_integrations import DendriticEncoder
for model in sys.argv[1:]:
    try:
        DendriticEncoder.load(model)
    except ImportError as error:
        assert 'pip install "nexus-integrations[train]"' in str(error), error
    else:
        raise SystemExit("loaded")
done = subprocess.run([sys.executable, "-m", "nexus_integrations"], capture_output=True, text=True)
assert done.returncode == 1, done
assert 'typer is missing: pip install "nexus-integrations[train]"' in done.stderr, done.stderr
"""
    environment = {"PYTHONPATH": "", "XDG_CACHE_HOME": str(tmp_path)}  # no graph was made here
    fresh(program, str(tuned.saved), python=runtime_python, **environment)


def test_onnxruntime_missing(tuned, tiny_model, package_environment):
    """An exported folder asks for the extra; a model's folder falls back on PyTorch."""
    program = """
import sys
from nexus_integrations import DendriticEncoder
for folder, how in ((sys.argv[1], {}), (sys.argv[2], {"backend": "onnx"})):
    try:
        DendriticEncoder.load(folder, **how)
    except ImportError as error:
        assert 'pip install "nexus-integrations[' in str(error), error
    else:
        raise SystemExit("loaded")
assert DendriticEncoder.load(sys.argv[2]).backbone.backend == "torch"
"""
    fresh(
        "import sys; sys.modules['onnxruntime'] = None\n" + program,  # as if it were not installed
        str(tuned.exported),
        str(tiny_model),
        **package_environment,
    )


FORK = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")  # CPython warns of forks beside threads
import numpy as np
from nexus_integrations.langchain import NexusEmbeddings
model = NexusEmbeddings(model=sys.argv[1], backend=sys.argv[2])
texts = ["a longer text of many words " * 6] * 40 + ["who signs", "the form"]
before = model.embed_documents(texts), model.embed_query("a"), model.encoder.encode_queries(["a"])
stop = threading.Event()
def busy():
    while not stop.is_set():
        model.embed_query("busy")
threading.Thread(target=busy, daemon=True).start()
for _ in range(3):  # while another thread embeds
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        after = model.embed_documents(texts), model.embed_query("a")
        direct = model.encoder.encode_queries(["a"])
        fresh = NexusEmbeddings(model=sys.argv[1], backend=sys.argv[2]).embed_query("a")
        same = all(np.allclose(x, y, atol=1e-6) for x, y in zip(before, (*after, direct)))
        os._exit(0 if same and np.allclose(fresh, before[1], atol=1e-6) else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
stop.set()
assert np.allclose(model.embed_query("a"), before[1], atol=1e-6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_fork_embeds(tuned, package_environment, backend):
    """Children made after loading, while a thread embeds, give the parent's vectors."""
    fresh(FORK, str(tuned.saved), backend, **package_environment)


@pytest.mark.model
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_fork_of_the_real_model_embeds(encoder, package_environment, backend):
    """Its batches are large enough to run on several threads, which a fork does not copy."""
    fresh(FORK, "all-MiniLM-L6-v2", backend, **package_environment)


def test_spawned_workers_of_an_ingestion_pipeline(tuned, package_environment, tmp_path):
    """LlamaIndex pickles the model into each worker, where it is loaded once."""
    program = """
import sys
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from nexus_integrations.llama_index import NexusEmbedding
if __name__ == "__main__":
    model = NexusEmbedding(model=sys.argv[1], backend="onnx", num_threads=1)
    model.get_query_embedding("loaded here already")
    nodes = [TextNode(id_=str(n), text=f"text {n}") for n in range(6)]
    done = IngestionPipeline(transformations=[model]).run(nodes=nodes, num_workers=2)
    expected = model.get_text_embedding_batch([node.text for node in nodes])
    found = {node.id_: node.embedding for node in done}
    worst = max(abs(x - y) for n in range(6) for x, y in zip(found[str(n)], expected[n]))
    assert worst < 1e-6, worst
"""
    (tmp_path / "ingest.py").write_text(program)  # spawn reads the main module again
    done = subprocess.run(
        [sys.executable, str(tmp_path / "ingest.py"), str(tuned.saved)],
        env=package_environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


# Telemetry of ONNX Runtime, which is silent where CI is set.

TELEMETRY = """
import os, sys
def watch(event, arguments):
    if event == "import" and arguments[0] == "onnxruntime":
        print("import", os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.addaudithook(watch)
from nexus_integrations import DendriticEncoder
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""
FIRST_IMPORTS = {
    "run": "DendriticEncoder.load(exported).encode_queries(['a'])",
    "quantise": "DendriticEncoder.load(model, backend='torch').export(new, 'int8')",
    "cache": "DendriticEncoder.load(model).encode_documents(['a'])",
}


@pytest.mark.parametrize("way", FIRST_IMPORTS)
def test_telemetry_is_off_before_onnxruntime_is_imported(tuned, package_environment, tmp_path, way):
    """On every path that can be first; the home folder gets nothing but our own cache."""
    home = tmp_path / "home"
    home.mkdir()
    folders = f"exported, model, new = {str(tuned.exported)!r}, {str(tuned.saved)!r}, 'new'\n"
    environment = {k: v for k, v in package_environment.items() if k not in _OF_THE_MACHINE}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY + folders + FIRST_IMPORTS[way]],
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"import 1"}
    written = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert written <= {("cache", "nexus-integrations")}


_OF_THE_MACHINE = {"CI", "ORT_DISABLE_TELEMETRY", "TF_BUILD", "GITHUB_ACTIONS"}


def test_onnxruntime_that_was_imported_before_is_told_of(monkeypatch):
    """Once, with what to do; what the user set is kept, and nothing is said."""
    import onnxruntime  # noqa: F401

    from nexus_integrations.backends.session import import_onnxruntime

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with pytest.warns(UserWarning, match="set ORT_DISABLE_TELEMETRY=1 in the environment before"):
        import_onnxruntime()
    import_onnxruntime()
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
