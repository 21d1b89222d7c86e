"""Runs of a recipe on a corpus: train, nudge, judge on test, and append one row of figures."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.corpora import Corpus, index_of, mapped
from benchmarks.record import Row, append_row, in_steps, machine, read_rows, run_id
from nexus_integrations import (
    DendriticEncoder,
    Evaluation,
    FinetuneConfig,
    NudgeConfig,
    evaluate,
    finetune,
    nudge_index,
)
from nexus_integrations.index import MemoryIndex
from nexus_integrations.retrievers import DenseRetriever

HEAD, NUDGED = "head", "head + NUDGE-N"
# A run was alone, and its seconds count, when its threads ran for this share of the time.
_ALONE = 0.85


@dataclass
class Bench:
    """A corpus, its indexes, and the file of rows."""

    corpus: Corpus
    encoder: DendriticEncoder
    path: Path
    alone: bool = False
    """Whether to measure a run again when its recorded seconds were of a busy machine."""
    others: Sequence[Path] = ()
    """Records of other benchmarks: their runs are not repeated."""
    questions: bool = True
    """Whether a row keeps the value of each question."""

    @cached_property
    def index(self) -> MemoryIndex:
        """The training questions' documents."""
        return index_of(self.encoder, self.corpus.train)

    @cached_property
    def test_index(self) -> MemoryIndex:
        """The test questions' documents."""
        return index_of(self.encoder, self.corpus.test) if self.corpus.unseen else self.index

    def once(self, recipe: str, settings: dict[str, Any], measure: Callable[[], Row]) -> Row:
        """Return the recorded row of a run; where there is none, measure and append it."""
        corpus = self.corpus
        key = {
            "set": corpus.name,
            "settings": settings,
            "model": self.encoder.fingerprint,
            "data": [part.digest for part in (corpus.train, corpus.dev, corpus.test)],
        }
        run = run_id(key)
        for row in read_rows(self.path, *self.others):
            if row["run"] == run and row["alone"] >= self.alone:
                return row
        before = _used()
        measured = measure()
        wall, own = np.subtract(_used(), before)
        share = float(own / wall / torch.get_num_threads())
        row = {
            "run": run,
            "set": corpus.name,
            "recipe": recipe,
            "seed": settings.get("seed"),
            "alone": share > _ALONE and "beginning_of" not in measured,
            "share": round(share, 2),
            "cpu_seconds": round(float(own), 1),
            **measured,
            "settings": settings,
            "model": key["model"],
            "machine": machine("torch"),
            "threads": torch.get_num_threads(),
        }
        if not self.questions:
            del row["per_query"]
        append_row(self.path, row)
        stages = {stage: found["ndcg@10"] for stage, found in row["test"].items()}
        print(corpus.name, recipe, row["seed"], stages, row["seconds"], flush=True)
        return row

    def base(self) -> Row:
        """Return the row of the model as it is, and of nudges of its index."""
        return self.once("base", {}, self._base)

    def finetuned(
        self, recipe: str, config: FinetuneConfig, then: FinetuneConfig | None = None
    ) -> Row:
        """Return the row of a fine-tuning by the package.

        `then` trains heads on the backbone that `config` trained, in place of those it has.
        """
        settings = config.settings()
        if then is not None:
            settings["then"] = then.settings()
        return self.once(recipe, settings, lambda: self._finetuned(config, then))

    def judged(
        self, tuned: Any, index: MemoryIndex, gamma: float | None = None, *, nudge: bool = True
    ) -> Row:
        """Evaluate on test, nudge, and evaluate again; `gamma` None: chosen on dev.

        With a γ given the nudge learns from dev as well.
        """
        corpus = self.corpus
        stages = {HEAD: evaluate(DenseRetriever(index, tuned), corpus.test)}
        row: Row = {"gamma": None, "nudge_seconds": 0.0}
        if nudge and not corpus.unseen:  # otherwise no question is about the documents
            if gamma is None:
                report = nudge_index(index, tuned, corpus.train, corpus.dev, NudgeConfig())
                row["dev_nudged"] = round(report.curve[report.gamma], 5)
            else:
                report = nudge_index(
                    index, tuned, corpus.train.joined(corpus.dev), config=NudgeConfig(gamma=gamma)
                )
            stages[NUDGED] = evaluate(DenseRetriever(index, tuned), corpus.test)
            row |= {"gamma": report.gamma, "nudge_seconds": round(report.seconds, 2)}
        return {**row, **figures(stages)}

    def _base(self) -> Row:
        index, corpus = self.test_index, self.corpus
        stages, seconds = {"base": evaluate(DenseRetriever(index, self.encoder), corpus.test)}, {}
        if not corpus.unseen:
            for name, solver in (("NUDGE-N", "closed-form"), ("nudge-ft", "nudge-ft")):
                config = NudgeConfig(solver="nudge-ft" if name == "nudge-ft" else "closed-form")
                report = nudge_index(index, self.encoder, corpus.train, corpus.dev, config)
                stages[name] = evaluate(DenseRetriever(index, self.encoder), corpus.test)
                seconds[solver] = round(report.seconds, 2)
                report.undo(index)
        return {"seconds": 0.0, "nudge_seconds": seconds, **figures(stages)}

    def _finetuned(self, config: FinetuneConfig, then: FinetuneConfig | None) -> Row:
        corpus = self.corpus
        result = finetune(self.encoder, corpus.train, corpus.dev, config, index=self.index)
        if then is not None:
            bare = result.encoder.with_heads(query_head=None, document_head=None)
            bench, begun = replace(self, encoder=bare), perf_counter()
            vectors = bench.index, bench.test_index  # embedded now
            embedding = perf_counter() - begun
            assert all(map(len, vectors))
            found = bench._finetuned(then, None)
            found["seconds"] = round(result.seconds + found["seconds"], 2)
            found["embedding_seconds"] = round(embedding + found["embedding_seconds"], 2)
            return {**found, "dev_before_heads": round(result.score, 5)}
        tuned = result.encoder
        heads = {id(head): head for head in (tuned.query_head, tuned.document_head) if head}
        weights = [array for head in heads.values() for array in head.arrays.values()]
        begun = perf_counter()
        if config.backbone == "frozen":
            index = mapped(self.test_index, tuned)
        else:
            index = index_of(tuned, corpus.test)
        embedding = perf_counter() - begun
        gamma = result.gamma if config.refit else None
        # A backbone that was refit has learned from dev too: no question is left to choose γ.
        judged = self.judged(tuned, index, gamma, nudge=not config.refit or gamma is not None)
        return {
            "dev": round(result.score, 5),
            "dev_before": round(result.baseline_score, 5),
            "epochs": len(result.history),
            "best_epoch": max(result.history, key=lambda epoch: epoch.score).epoch,
            "dendrites": max((head.dendrites for head in heads.values()), default=0),
            "bytes": sum(array.nbytes for array in weights),
            "history": [
                [epoch.dendrites, round(epoch.score, 5), round(epoch.seconds, 2)]
                for epoch in result.history
            ],
            "seconds": round(result.seconds, 2),
            "embedding_seconds": round(embedding, 2),
            **judged,
        }


def _used() -> tuple[float, float]:
    """Return the time and the CPU seconds of this process and of its children that have ended."""
    return perf_counter(), sum(os.times()[:4])


def figures(stages: dict[str, Evaluation]) -> Row:
    """Return the test figures of each stage, and nDCG@10 of each question."""
    return {
        "test": {
            stage: {metric: round(value, 5) for metric, value in found.metrics.items()}
            for stage, found in stages.items()
        },
        "per_query": {
            stage: in_steps(found.per_query["ndcg@10"]) for stage, found in stages.items()
        },
    }
