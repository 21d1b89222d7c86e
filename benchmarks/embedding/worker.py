"""One embedding model in a process of its own, which `benchmarks.embedding` asks for timings.

`python -m benchmarks.embedding.worker NAME FOLDER` loads the model in FOLDER, writes a line of JSON
once it has embedded its first text, and then answers lines on standard input. It imports what NAME
needs and nothing more, so that it runs in any environment that has it.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

FIRST = "What does the policy say about visitors?"


class Model:
    """What every model can be asked for, by the calls that its users make."""

    def __init__(
        self,
        documents: Callable[[list[str]], Any],
        query: Callable[[str], Any],
        aquery: Callable[[str], Any] | None = None,
    ) -> None:
        self.documents = documents
        self.query = query
        self.aquery = aquery


def _llama_index(embedding: Any) -> Model:
    return Model(
        embedding.get_text_embedding_batch,
        embedding.get_query_embedding,
        embedding.aget_query_embedding,
    )


def _langchain(embeddings: Any) -> Model:
    return Model(embeddings.embed_documents, embeddings.embed_query, embeddings.aembed_query)


def load(name: str, folder: str) -> Model:
    """Load a model as its documentation shows, with nothing set but the folder."""
    kind, _, precision = name.partition(" ")
    chosen: Any = precision or None
    if kind == "NexusEmbedding":
        from nexus_integrations.llama_index import NexusEmbedding

        return _llama_index(NexusEmbedding(model=folder, precision=chosen))
    if kind == "NexusEmbeddings":
        from nexus_integrations.langchain import NexusEmbeddings

        return _langchain(NexusEmbeddings(model=folder, precision=chosen))
    if kind == "DendriticEncoder":
        from nexus_integrations import DendriticEncoder

        encoder = DendriticEncoder.load(folder, precision=chosen)
        return Model(encoder.encode_documents, lambda text: encoder.encode_queries([text])[0])
    if kind == "HuggingFaceEmbedding":
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        return _llama_index(HuggingFaceEmbedding(model_name=folder))
    if kind == "HuggingFaceEmbeddings":
        from langchain_huggingface import HuggingFaceEmbeddings

        return _langchain(HuggingFaceEmbeddings(model_name=folder))
    if kind == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(folder)
        size = int(precision or 32)
        return Model(
            lambda texts: model.encode_document(texts, batch_size=size, normalize_embeddings=True),
            lambda text: model.encode_query(text, normalize_embeddings=True),
        )
    raise ValueError(f"no model is called {name!r}")


def documents(model: Model, texts: list[str], path: str | None = None) -> dict[str, Any]:
    """Time one call with all texts; keep the vectors at `path`."""
    begun = perf_counter()
    vectors = model.documents(texts)
    seconds = perf_counter() - begun
    _keep(vectors, path)
    return {"seconds": seconds}


def queries(model: Model, texts: list[str], path: str | None = None) -> dict[str, Any]:
    """Time one text after another."""
    seconds, vectors = [], []
    for text in texts:
        begun = perf_counter()
        vectors.append(model.query(text))
        seconds.append(perf_counter() - begun)
    _keep(vectors, path)
    return {"seconds": seconds}


def concurrent(model: Model, texts: list[str], at_once: int) -> dict[str, Any]:
    """Time questions that are asked `at_once` at a time, each by an async call of its own."""
    ask = model.aquery
    if ask is None:
        return {"seconds": None}

    async def rounds() -> None:
        for start in range(0, len(texts), at_once):
            await asyncio.gather(*(ask(text) for text in texts[start : start + at_once]))

    begun = perf_counter()
    asyncio.run(rounds())
    return {"seconds": perf_counter() - begun}


def _keep(vectors: Sequence[Any], path: str | None) -> None:
    if path is not None:
        import numpy as np

        np.save(path, np.asarray(vectors, dtype=np.float32))


def _resident_mb() -> dict[str, float]:
    """Return what is and what was at most resident, in 2**20 bytes (Linux)."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return {"resident_mb": found["VmRSS"], "peak_mb": found["VmHWM"]}


def peak(size: int = 2048, repeats: int = 3) -> dict[str, float]:
    """Return the operations per second of a large matrix product, by type, as its library does it.

    float32 and bfloat16 by PyTorch, whole numbers of eight bits by ONNX Runtime.
    """
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    rng = np.random.default_rng(0)
    tables = rng.standard_normal((2, size, size), dtype=np.float32)
    whole = rng.integers(-127, 128, (size, size), dtype=np.int8)
    node = onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [size, size])],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.INT32, [size, size])],
        [onnx.numpy_helper.from_array(whole, "b")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        onnx.helper.make_model(
            graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)]
        ).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    left, right = (torch.from_numpy(table) for table in tables)
    half = (left.to(torch.bfloat16), right.to(torch.bfloat16))
    bytes_ = (tables[0] * 20 + 128).clip(0, 255).astype(np.uint8)
    products: dict[str, Callable[[], Any]] = {
        "float32": lambda: left @ right,
        "bfloat16": lambda: half[0] @ half[1],
        "int8": lambda: session.run(None, {"a": bytes_}),
    }
    found = {}
    for name, product in products.items():
        product()
        times = []
        for _ in range(repeats):
            begun = perf_counter()
            product()
            times.append(perf_counter() - begun)
        found[name] = 2 * size**3 / min(times)
    return found


def main() -> None:
    """Load, tell that the first vector is there, and answer until standard input ends."""
    name, folder = sys.argv[1:3]
    answers: dict[str, Callable[..., Any]] = {"peak": peak}
    if name != "peak":
        model = load(name, folder)
        model.query(FIRST)
        for answer in (documents, queries, concurrent):
            answers[answer.__name__] = lambda *, _answer=answer, **asked: _answer(model, **asked)
    print(json.dumps(_resident_mb()), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(answers[asked.pop("task")](**asked)), flush=True)


if __name__ == "__main__":
    main()
