"""A sentence-transformers model run by PyTorch."""

import copy
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet, WeakValueDictionary

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers.utils import logging

from nexus_integrations.backends import Precision, Role
from nexus_integrations.backends.bfloat16 import in_bfloat16
from nexus_integrations.backends.export import UnitVectors
from nexus_integrations.backends.folder import RuntimeModel, precise_digest, write_runtime
from nexus_integrations.backends.stream import embed
from nexus_integrations.backends.threads import Turns, cores
from nexus_integrations.backends.tokens import TextTokenizer, plain_definition
from nexus_integrations.progress import embedding_bar
from nexus_integrations.protocols import Floats, Integers

# By "is it a processor": word pieces of a batch, padding included. Few for a processor's caches,
# many for a graphics card.
_BATCH_TOKENS = {True: 1024, False: 32_768}

# Likewise: up to how many pieces texts of other lengths share a batch. Longer ones fill a core by
# themselves, and attention takes longer with a mask; a graphics card takes all together.
_PADDED_TO = {True: 64, False: 1 << 30}

# Of lengths in bfloat16 on a processor: for each length oneDNN makes and keeps other products.
_MULTIPLE = 8

# Models that take texts get batches of about this many characters (some 2,000 word pieces).
_BATCH_CHARACTERS = 16_384
_BATCH_TEXTS = 64

_loaded: "WeakValueDictionary[_Key, TorchBackbone]" = WeakValueDictionary()
_loading = threading.Lock()
_setting_threads = threading.Lock()
_backbones: "WeakSet[TorchBackbone]" = WeakSet()
_ran = False  # a model, here or in the process that this one was forked from
_one_thread = False

_Key = tuple[str, str, str, int | None, int, int]


class TorchBackbone:
    """A frozen sentence-transformers model: text to unit vectors, by role.

    One instance per folder and way of running serves the whole process. A lone batch is computed by
    all threads together; of several, on a processor, each has a thread of its own, and as many run
    as there are threads, whoever calls.

    A transformer with a fast tokenizer, one tower and plain prompts is given word pieces in batches
    by their number; any other model goes through sentence-transformers' `encode_query` and
    `encode_document`.
    """

    backend: Literal["torch"] = "torch"

    def __init__(
        self,
        model: SentenceTransformer,
        folder: Path | None = None,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        num_threads: int | None = None,
    ) -> None:
        """Take a model; `folder` is where it was loaded from."""
        self.model = model.eval()
        self.folder = folder
        self.precision: Literal["float32", "bfloat16"] = precision
        self.num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._begin_process()
        _backbones.add(self)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        num_threads: int | None = None,
    ) -> "TorchBackbone":
        """Return the process's one backbone of this folder, loading it when it is new.

        Raises `ValueError` for a folder that holds no readable model. Weights are read from
        safetensors alone, and code in the folder is never run.
        """
        # Files that changed in place are another model.
        stamps = [f.stat() for f in folder.rglob("*") if f.is_file()]
        way = (device, precision, num_threads)
        key = (
            str(folder.resolve()),
            *way,
            sum(stamp.st_size for stamp in stamps),
            max((stamp.st_mtime_ns for stamp in stamps), default=0),
        )
        with _loading:
            backbone = _loaded.get(key)
            if backbone is None:
                new = cls(
                    _read(folder, device), folder, precision=precision, num_threads=num_threads
                )
                # A copy in another folder, as a saved encoder has one, is the same backbone.
                same = (b for k, b in _loaded.items() if k[1:4] == way and b.digest == new.digest)
                backbone = _loaded[key] = next(same, new)
            return backbone

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", "mps"."""
        return str(self.model.device)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def max_length(self) -> int:
        """How many word pieces of a text are read; the rest is cut off."""
        return int(self.model.max_seq_length or 0)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over `float32_digest` and another precision than float32."""
        return precise_digest(self.float32_digest, self.precision)

    @cached_property
    def float32_digest(self) -> str:
        """SHA-256, in hex, over weights, vocabulary, modules, prompts and maximal length."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        settings = {
            "modules": [
                [type(module).__name__, getattr(module, "get_config_dict", dict)()]
                for module in self.model
            ],
            "prompts": dict(self.model.prompts),
            "max_length": self.max_length,
            "tokenizer": _tokenizer_settings(self.model.tokenizer),
        }
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than `max_length` word pieces."""
        if self._tokenizer is not None:
            return self._tokenizer.count_truncated(texts)
        # A character makes few word pieces (a Hangul syllable three): short texts need no counting.
        long = [text for text in texts if 4 * len(text) > self.max_length - 2]
        if not long or not self.max_length:
            return 0
        with self._turns.all():
            pieces = self.model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
        return sum(len(piece) > self.max_length for piece in pieces)

    def encode(self, texts: Sequence[str], role: Role) -> Floats:
        """Return unit vectors, float32 (n, dimension), under the role's prompt and tower."""
        if self._tokenizer is not None:
            processor = self.model.device.type == "cpu"
            runs = self._runs() if processor else 1
            return embed(
                texts,
                role,
                self._tokenizer,
                self._run,
                dimension=self.dimension,
                batch_tokens=_BATCH_TOKENS[processor],
                padded_to=_PADDED_TO[processor],
                multiple=_MULTIPLE if processor and self.precision == "bfloat16" else 1,
                runs=runs,
                run_beside=self._run_beside if runs > 1 else None,
            )
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        with embedding_bar(len(texts), role) as bar:
            for rows in _batches_by_length(texts):
                with self._running():
                    vectors[rows] = encode(
                        [texts[row] for row in rows],
                        batch_size=len(rows),
                        normalize_embeddings=True,
                        show_progress_bar=False,
                    )
                bar.update(len(rows))
        return vectors

    def save(self, folder: Path) -> None:
        """Write a plain sentence-transformers folder, without a model card."""
        with without_progress_bars():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)

    def export(self, folder: Path, precision: Precision | None = None) -> None:
        """Write a runtime folder, which runs by ONNX Runtime alone.

        Raises `ImportError` where onnx or onnxscript is missing, and `ValueError` for a model that
        cannot be exported and for bfloat16.
        """
        from nexus_integrations.backends.export import export_graph

        chosen = precision or self.precision
        if chosen == "auto":
            return self._export_fastest(folder)
        if chosen == "bfloat16":
            raise ValueError("ONNX Runtime has no CPU kernels for bfloat16: export float32 or int8")
        if self._tokenizer is None:
            raise ValueError(
                "this model is no single transformer with a fast tokenizer, which is all that can "
                'be exported to ONNX: use backend="torch"'
            )
        folder.mkdir(parents=True, exist_ok=True)
        with self._turns.all():
            model = UnitVectors(copy.deepcopy(self.model).cpu(), self._token_types)
        export_graph(model, folder, len(self.model.tokenizer), self.max_length)
        exact: Literal["float32", "int8"] = "float32" if chosen == "float32" else "int8"
        if exact == "int8":
            from nexus_integrations.backends.int8 import quantise_graph
            from nexus_integrations.backends.session import write_probe

            quantise_graph(folder, self._tokenizer)
            write_probe(folder, len(self.model.tokenizer))
        write_runtime(
            folder,
            RuntimeModel(
                precision=exact,
                digest=precise_digest(self.float32_digest, exact),
                float32_digest=self.float32_digest,
                dimension=self.dimension,
                tokenizer=self._tokenizer,
            ),
        )

    def _export_fastest(self, folder: Path) -> None:
        from nexus_integrations.backends.fastest import fastest
        from nexus_integrations.backends.onnx import OnnxBackbone

        with tempfile.TemporaryDirectory(prefix="nexus-onnx-") as drafts:
            ways = []
            precisions: tuple[Precision, ...] = ("float32", "int8")
            for precision in precisions:
                draft = Path(drafts) / precision
                try:
                    self.export(draft, precision)
                except ValueError:  # int8 loses too much
                    if precision == "float32":
                        raise
                else:
                    ways.append(OnnxBackbone.load(draft))
            chosen = Path(drafts) / fastest(ways).precision
            shutil.copytree(chosen, folder, dirs_exist_ok=True)

    @cached_property
    def _tokenizer(self) -> TextTokenizer | None:
        """What makes this model's word pieces, or None for one that takes more than word pieces."""
        return text_tokenizer(self.model)

    @cached_property
    def _token_types(self) -> bool:
        return "token_type_ids" in getattr(self.model.tokenizer, "model_input_names", ())

    @cached_property
    def _vectors(self) -> UnitVectors:
        vectors = UnitVectors(self.model, self._token_types)
        if self.precision == "float32":
            return vectors
        return in_bfloat16(vectors, len(self.model.tokenizer), self.max_length)

    def _run(self, ids: Integers, mask: Integers) -> Floats:
        """Run a batch by all threads."""
        with self._running():
            return self._compute(ids, mask)

    def _run_beside(self, ids: Integers, mask: Integers) -> Floats:
        """Run a batch by one thread, beside others."""
        with self._turns.one():
            with self._making:
                if self._pool is None:
                    self._pool = _lone_threads(self._turns.threads)
            return self._pool.submit(self._compute_alone, ids, mask).result()

    def _compute_alone(self, ids: Integers, mask: Integers) -> Floats:
        with self._mode():
            return self._compute(ids, mask)

    def _compute(self, ids: Integers, mask: Integers) -> Floats:
        with self._making:
            run = self._vectors
        # Without a mask attention is faster, and exact.
        tensors = [ids] if mask.all() else [ids, mask]
        vectors = run(*(torch.from_numpy(t).to(self.model.device) for t in tensors))
        return np.asarray(vectors.cpu().numpy(), dtype=np.float32)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run the model alone, in its precision, on its threads; restore the process's number."""
        own = None if _one_thread else self.num_threads
        with self._turns.all(), _threads(own), self._mode():
            yield

    @contextmanager
    def _mode(self) -> Iterator[None]:
        global _ran
        _ran = True
        half = self.precision == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(self.model.device.type, torch.bfloat16, enabled=half),
        ):
            yield

    def _runs(self) -> int:
        """Return how many batches run at a time."""
        if _one_thread:
            return 1
        return min(self._turns.threads, self.num_threads or torch.get_num_threads())

    def _begin_process(self) -> None:
        self._turns = Turns(self.num_threads or cores())
        self._making = threading.Lock()
        self._pool = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "TorchBackbone":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.folder is None:
            raise TypeError(
                "a backbone in memory cannot be pickled: save it, and load it in the other process"
            )
        return _unpickled, (self.folder, self.device, self.precision, self.num_threads)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the process's number of threads and restore it: one after another, or it would stay."""
    if number is None:
        yield
        return
    with _setting_threads:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _lone_threads(number: int) -> ThreadPoolExecutor:
    """Return threads that compute by themselves, without OpenMP's team."""
    pool = ThreadPoolExecutor(number, "nexus-model")
    all_there = threading.Barrier(number, timeout=60)  # where the system gives no more threads

    def begin(_: int) -> None:
        torch.get_num_threads()  # from its first use on a thread keeps the number that was set
        all_there.wait()

    with _threads(1):
        list(pool.map(begin, range(number)))
    return pool


def _unpickled(
    folder: Path,
    device: str,
    precision: Literal["float32", "bfloat16"],
    num_threads: int | None,
) -> TorchBackbone:
    return TorchBackbone.load(folder, device, precision=precision, num_threads=num_threads)


def text_tokenizer(model: SentenceTransformer) -> TextTokenizer | None:
    """Return the tokenizer that gives a model's word pieces, or None where there is none.

    It is held against what sentence-transformers feeds the model on a few texts of all kinds, so
    that a model with other towers, inputs or prompts than are known here is not taken for a plain
    one.
    """
    module = next(iter(model))
    fast = getattr(getattr(module, "tokenizer", None), "backend_tokenizer", None)
    if fast is None or not isinstance(module, Transformer):
        return None
    pooled = all(module.include_prompt for module in model if isinstance(module, Pooling))
    tokenizer = TextTokenizer(
        definition=plain_definition(fast.to_str()),
        prompts={
            "query": _prompt(model, "query"),
            "document": _prompt(model, "document", "passage", "corpus"),
        },
        max_length=int(model.max_seq_length or 0),
    )
    roles: tuple[Role, Role] = ("query", "document")
    for role in roles:
        prompt = tokenizer.prompts[role]
        if prompt and not pooled:  # the prompt's pieces are left out of the mean
            return None
        for text in _probes(tokenizer.max_length):
            ids = np.array(tokenizer.pieces([text], role))  # (1, length)
            if not ids.size:  # without a piece at its ends a blank text has no input
                return None
            theirs = model.preprocess([text], prompt=prompt or None, task=role)
            known = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            for name, value in theirs.items():
                if name in ("modality", "prompt_length"):
                    continue
                if name not in known or not np.array_equal(known[name], np.asarray(value)):
                    return None
    return tokenizer


def _prompt(model: SentenceTransformer, *names: str) -> str:
    """Return the prompt that `encode_query` or `encode_document` takes."""
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return model.prompts[name] or "" if name is not None else ""


def _probes(max_length: int) -> list[str]:
    return [
        "Who signs FORM K-12, and when?",
        "",
        "line one\nline two\ttab \u00a0 space",
        "naïve Ærøskøbing ﬁne Ⅳ 病院 병원 😀👩‍⚕️ \u0000 \u200b <s> [MASK]",
        " word" * (max_length or 600),
    ]


def _begin_process() -> None:
    """Go on in a fork, without locks that another thread held and threads that are not copied."""
    global _loading, _setting_threads, _one_thread
    _loading = threading.Lock()
    _setting_threads = threading.Lock()
    for backbone in tuple(_backbones):
        backbone._begin_process()
    if _ran:  # OpenMP would wait for its old threads for ever
        _one_thread = True
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_process)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars into logs while it reads or writes weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read(folder: Path, device: str) -> SentenceTransformer:
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no sentence-transformers model: it has no modules.json")
    try:
        with without_progress_bars():
            return SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:
        # Damaged folders fail in many ways, deep in three libraries; to the user they are one.
        raise ValueError(f"{folder} holds no readable model: {error}") from error


def _tokenizer_settings(tokenizer: Any) -> object:
    """Return vocabulary, casing and splitting; a fast tokenizer tells all of it as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    settings = json.loads(backend.to_str())
    # Calls leave their truncation and padding behind; they are no property of the model.
    return {k: v for k, v in settings.items() if k not in ("truncation", "padding")}


def _batches_by_length(texts: Sequence[str]) -> list[list[int]]:
    """Group row numbers into batches of like length, the longest first (memory fails early)."""
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(texts)), key=lambda row: -len(texts[row])):
        full = not batches or len(batches[-1]) == _BATCH_TEXTS
        if full or (len(batches[-1]) + 1) * min(longest, 2048) > _BATCH_CHARACTERS:
            batches.append([])
            longest = len(texts[row])
        batches[-1].append(row)
    return batches
