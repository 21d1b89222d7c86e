"""The STS Benchmark, run by run: train on its train part, choose on dev, judge on test.

A run leaves one row of figures, without any text. Rows are appended to a JSONL file, each synced to
disk, so that a sweep which was stopped goes on behind the last whole row.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.record import Row, append_row, machine, read_rows
from benchmarks.sts.presets import PRESETS
from nexus_integrations.backends import Backbone, Role
from nexus_integrations.data import SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.protocols import Floats
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune
from nexus_integrations.training.result import FinetuneResult


@dataclass(frozen=True, kw_only=True)
class STSBenchmark:
    """Its three parts."""

    train: SimilarityDataset
    dev: SimilarityDataset
    test: SimilarityDataset

    @classmethod
    def read(cls, folder: str | Path) -> "STSBenchmark":
        """Read `train`, `dev` and `test`, each `.csv` or `.csv.gz`: two sentences, score 0 to 5.

        Raises `FileNotFoundError` for a part that is missing.
        """
        parts = {}
        for name in ("train", "dev", "test"):
            found = [Path(folder) / f"{name}.csv{end}" for end in ("", ".gz")]
            path = next((path for path in found if path.is_file()), None)
            if path is None:
                raise FileNotFoundError(f"{folder} holds neither {name}.csv nor {name}.csv.gz")
            parts[name] = SimilarityDataset.from_csv(path)
        return cls(**parts)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all three parts."""
        parts = [self.train.digest, self.dev.digest, self.test.digest]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def similarity_score(encoder: DendriticEncoder, pairs: SimilarityDataset) -> float:
    """Return Spearman's ρ between the cosines of the sentences and their scores."""
    first, second = (encoder.encode_documents(s) for s in (pairs.sentences1, pairs.sentences2))
    return float(spearmanr(np.einsum("ij,ij->i", first, second), pairs.scores).statistic)


def run(
    encoder: DendriticEncoder,
    data: STSBenchmark,
    name: str,
    config: FinetuneConfig,
    *,
    checkpoint_dir: Path | None = None,
) -> tuple[FinetuneResult, Row]:
    """Train once; return the result and its row."""
    begun = perf_counter()
    result = finetune(encoder, data.train, data.dev, config, checkpoint_dir=checkpoint_dir)
    seconds = perf_counter() - begun
    best = max(result.history, key=lambda epoch: epoch.score)
    head = result.encoder.query_head
    weights = [] if head is None or head.is_identity else list(head.arrays.values())
    row = {
        "run": run_id(encoder, data, name, config),
        "name": name,
        "seed": config.seed,
        "dev": round(result.score, 5),
        "test": round(similarity_score(result.encoder, data.test), 5),
        "dev_before": round(result.baseline_score, 5),
        "epochs": len(result.history),
        "best_epoch": best.epoch if result.score > result.baseline_score else 0,
        "dendrites": 0 if head is None else head.dendrites,
        "parameters_added": sum(array.size for array in weights),
        "bytes_added": sum(array.nbytes for array in weights),
        "seconds": round(seconds, 1),
        "config": config.settings("pairs"),
        "history": [
            [epoch.epoch, epoch.dendrites, round(epoch.loss, 5), round(epoch.score, 5)]
            for epoch in result.history
        ],
        "model": encoder.fingerprint,
        "data": data.digest,
        "machine": {**machine("torch"), "threads": torch.get_num_threads()},
    }
    return result, row


def run_id(encoder: DendriticEncoder, data: STSBenchmark, name: str, config: FinetuneConfig) -> str:
    """Return a hash of all that tells one run from another."""
    content = json.dumps([encoder.fingerprint, data.digest, name, config.settings("pairs")])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def published_grid(backbone: str, seeds: Sequence[int]) -> Iterator[tuple[str, FinetuneConfig]]:
    """Yield the published grid: learning rate × batch × warm-up, dendrites on and off.

    Eight epochs with dendrites, the warm-up among them, and ten without, where there is no warm-up.
    """
    base = PRESETS["published"]
    for seed, rate, batch in product(seeds, (1e-5, 2e-5, 5e-5), (16, 32)):
        shared = replace(base, learning_rate=rate, batch_size=batch, seed=seed)
        shared = _on(shared, backbone)
        name = f"{backbone}, lr {rate:.0e}, batch {batch}"
        for warmup in (2, 4):
            config = replace(shared, warmup_epochs=warmup, epochs=8 - warmup)
            yield f"{name}, warm-up {warmup}", config
        yield f"{name}, no dendrites", replace(shared, dendrites=0, warmup_epochs=None, epochs=10)


def _on(config: FinetuneConfig, backbone: str) -> FinetuneConfig:
    """Return the recipe for a backbone: trained at the heads' rate, or frozen and not anchored."""
    if backbone == "trainable":
        return replace(config, backbone_learning_rate=config.learning_rate)
    return replace(config, backbone="frozen", backbone_learning_rate=None, dropout=None, anchor=0.0)


def preset_runs(names: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, FinetuneConfig]]:
    """Yield presets by name, seed by seed; raises `ValueError` for an unknown one."""
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise ValueError(f"no preset is called {unknown[0]!r}: choose from {', '.join(PRESETS)}")
    for seed, name in product(seeds, names):
        yield name, replace(PRESETS[name], seed=seed)


def sweep(
    encoder: DendriticEncoder,
    data: STSBenchmark,
    runs: Iterator[tuple[str, FinetuneConfig]],
    path: Path,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Do the runs whose rows the file lacks, append each; return the rows of all of them."""
    encoder = _remembering(encoder)
    known = {row["run"]: row for row in read_rows(path)}
    rows = []
    for name, config in runs:
        key = run_id(encoder, data, name, config)
        if key not in known:
            known[key] = run(encoder, data, name, config)[1]
            append_row(path, known[key])
        rows.append(known[key])
        on_row(known[key])
    return rows


def _remembering(encoder: DendriticEncoder) -> DendriticEncoder:
    """Return the same encoder, whose backbone embeds each text once and is trained as it was."""
    return DendriticEncoder(
        cast(Any, _Remembering(encoder.backbone)),
        query_head=encoder.query_head,
        document_head=encoder.document_head,
    )


class _Remembering:
    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._known: dict[tuple[str, str], Floats] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def encode(self, texts: Sequence[str], role: Role) -> tuple[Floats, int]:
        """Return the vectors, and no count of truncated texts: the backbone warned of them."""
        new = [text for text in dict.fromkeys(texts) if (role, text) not in self._known]
        if new:
            for text, vector in zip(new, self.backbone.encode(new, role)[0], strict=True):
                self._known[role, text] = vector
        return np.stack([self._known[role, text] for text in texts]), 0
