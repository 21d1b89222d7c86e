"""A sentence-transformers model run by PyTorch."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from nexus_integrations.backends import Role, load_backbone
from nexus_integrations.backends.batches import batches_by_length
from nexus_integrations.backends.bfloat16 import in_bfloat16
from nexus_integrations.backends.folder import precise_digest
from nexus_integrations.backends.model import (
    UnitVectors,
    model_digest,
    read_model,
    text_tokenizer,
    without_progress_bars,
)
from nexus_integrations.backends.process import on_fork
from nexus_integrations.backends.stream import embed
from nexus_integrations.backends.threads import Turns, cores
from nexus_integrations.backends.tokens import TextTokenizer
from nexus_integrations.backends.torch_threads import (
    lone_threads,
    mark_run,
    only_one_thread,
    thread_number,
)
from nexus_integrations.progress import embedding_bar
from nexus_integrations.protocols import Floats, Integers

# By "is it a CPU": tokens of a batch, padding included. Few for a CPU's caches, many for a GPU.
_BATCH_TOKENS = {True: 1024, False: 32_768}

# Likewise: up to how many tokens texts of other lengths share a batch. Longer ones fill a core by
# themselves, and attention takes longer with a mask; a GPU takes all together.
_PADDED_TO = {True: 64, False: 1 << 30}

# Lengths in bfloat16 on a CPU are multiples of this: oneDNN makes and keeps products by length.
_MULTIPLE = 8

# Models that take texts get batches of about this many characters (some 2,000 tokens), and of a
# long text this many count.
_BATCH_CHARACTERS = 16_384
_BATCH_TEXTS = 64
_READ = 2048

_backbones: "WeakSet[TorchBackbone]" = WeakSet()


class TorchBackbone:
    """A frozen sentence-transformers model: text to unit vectors, by role.

    All threads together compute a lone batch; on a CPU each of several batches has a thread of its
    own, and as many run as there are threads, whoever calls.

    A transformer with a fast tokenizer, one tower and plain prompts gets tokens in batches by their
    number; any other model goes through sentence-transformers' `encode_query` and
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
        """Read a model's folder; `load_backbone` shares what it reads.

        Raises `ValueError` for a folder that holds no readable model. Weights are read from
        safetensors alone, and code in the folder is never run.
        """
        model = read_model(folder, device)
        return cls(model, folder, precision=precision, num_threads=num_threads)

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
        """How many tokens of a text are read; the rest is cut off."""
        return int(self.model.max_seq_length or 0)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over `float32_digest` and another precision than float32."""
        return precise_digest(self.float32_digest, self.precision)

    @cached_property
    def float32_digest(self) -> str:
        """SHA-256, in hex, over weights, vocabulary, modules, prompts and maximal length."""
        return model_digest(self.model)

    @cached_property
    def tokenizer(self) -> TextTokenizer | None:
        """What makes this model's tokens, or None for one that takes more than tokens."""
        return text_tokenizer(self.model)

    def encode(self, texts: Sequence[str], role: Role) -> tuple[Floats, int]:
        """Return unit vectors, float32 (n, dimension), and how many texts were cut off."""
        if self.tokenizer is None:
            return self._encode_texts(texts, role), self._count_truncated(texts)
        cpu = self.model.device.type == "cpu"
        runs = self._runs() if cpu else 1
        return embed(
            texts,
            role,
            self.tokenizer,
            self._run,
            dimension=self.dimension,
            batch_tokens=_BATCH_TOKENS[cpu],
            padded_to=_PADDED_TO[cpu],
            multiple=_MULTIPLE if cpu and self.precision == "bfloat16" else 1,
            runs=runs,
            run_beside=self._run_beside if runs > 1 else None,
        )

    def save(self, folder: Path) -> None:
        """Write a plain sentence-transformers folder, without a model card."""
        with without_progress_bars():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)

    def copied(self) -> UnitVectors:
        """Return a copy of the model, from tokens to unit vectors, on the CPU in float32."""
        with self._turns.all():
            return UnitVectors(copy.deepcopy(self.model).cpu())

    def _encode_texts(self, texts: Sequence[str], role: Role) -> Floats:
        """Embed by sentence-transformers, which tokenises by itself."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        lengths = [min(len(text), _READ) for text in texts]
        with embedding_bar(len(texts), role) as bar:
            for rows in batches_by_length(lengths, _BATCH_CHARACTERS, rows=_BATCH_TEXTS):
                with self._running():
                    vectors[rows] = encode(
                        [texts[row] for row in rows],
                        batch_size=len(rows),
                        normalize_embeddings=True,
                        show_progress_bar=False,
                    )
                bar.update(len(rows))
        return vectors

    def _count_truncated(self, texts: Sequence[str]) -> int:
        # A character makes few tokens (a Hangul syllable three): short texts need no counting.
        long = [text for text in texts if 4 * len(text) > self.max_length - 2]
        if not long or not self.max_length:
            return 0
        with self._turns.all():
            ids = self.model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
        return sum(len(text) > self.max_length for text in ids)

    @cached_property
    def _vectors(self) -> UnitVectors:
        vectors = UnitVectors(self.model)
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
                    self._pool = lone_threads(self._turns.threads)
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
        """Run the model alone, in its precision, on its number of threads."""
        with self._turns.all(), thread_number(self.num_threads), self._mode():
            yield

    @contextmanager
    def _mode(self) -> Iterator[None]:
        mark_run()
        half = self.precision == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(self.model.device.type, torch.bfloat16, enabled=half),
        ):
            yield

    def _runs(self) -> int:
        """Return how many batches run at a time."""
        if only_one_thread():
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


def _unpickled(
    folder: Path,
    device: str,
    precision: Literal["float32", "bfloat16"],
    num_threads: int | None,
) -> Any:
    return load_backbone(
        folder, backend="torch", precision=precision, device=device, num_threads=num_threads
    )


def _begin_process() -> None:
    for backbone in tuple(_backbones):
        backbone._begin_process()


on_fork(_begin_process)
