"""Judging: each stage on questions that had no part in it, and what it then is kept for."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.evaluation import mean_interval, metric_depth, score_rankings
from nexus_integrations.files import written_whole
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Encoder, VectorIndex
from nexus_integrations.retrievers.hybrid import Candidates, Union
from nexus_integrations.training.finetune import finetune
from nexus_integrations.tuning.config import TuneConfig
from nexus_integrations.tuning.overlay import Overlay
from nexus_integrations.tuning.result import Stage

_BATCH = 256
_DEPTH = 100
_GROUPS = 5  # of judging questions: for each of them the others choose the weight

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Questions to fit on, others to judge with, and the encoder and index fitted so far."""

    rest: RetrievalDataset
    judged: RetrievalDataset
    encoder: Encoder
    index: VectorIndex


class Verdict(NamedTuple):
    """What is kept, and why."""

    stages: list[Stage]
    weight: float
    gamma: float
    judged: int
    judged_by: str


class Judging:
    """The stages of one tuning, tried on stand-ins; the index itself is only read."""

    def __init__(
        self,
        index: VectorIndex,
        encoder: Encoder,
        questions: RetrievalDataset,
        lexical: LexicalIndex | None,
        folder: Path | None,
        config: TuneConfig,
    ) -> None:
        self.index, self.encoder, self.lexical = index, encoder, lexical
        self.questions, self.folder, self.config = questions, folder, config
        self.weights = (0.0,) if lexical is None else tuple(sorted(set(config.weights)))

    def verdict(self, train: RetrievalDataset, dev: RetrievalDataset | None) -> Verdict:
        """Try the stages one after another, each on top of those kept before it."""
        config, stages = self.config, []
        parts, judged_by = self._parts(train, dev)
        values = self._values(parts)
        if config.heads is not None and isinstance(self.encoder, DendriticEncoder):
            trained = [
                replace(part, encoder=with_query_head(self.encoder, self.head(part.rest, None)))
                for part in progress_bar(parts, desc="train heads", unit="fold")
            ]
            tried = self._values(trained)
            stages.append(self._stage("heads", "one head for questions", values, tried))
            if stages[-1].kept:
                parts, values = trained, tried
        gamma = 0.0
        if config.nudge:
            gamma, moved = self._nudged(parts)
            tried = self._values(moved)
            stages.append(self._stage("nudge", f"γ = {gamma:g}", values, tried))
            if stages[-1].kept:
                parts, values = moved, tried
        if config.questions:
            tried = self._values(parts, learn=True)
            stages.append(self._stage("questions", "words of questions", values, tried))
            if stages[-1].kept:
                values = tried
        weight = 0.0
        if self.lexical is not None:
            weight, stage = self._weight(values)
            stages.append(stage)
        return Verdict(stages, weight, gamma, sum(len(part.judged) for part in parts), judged_by)

    def head(
        self, train: RetrievalDataset, dev: RetrievalDataset | None, *, last: bool = False
    ) -> DendriticHead:
        """Train a query head, or find it in the state folder; the last one as `refit` says."""
        assert self.config.heads is not None
        assert isinstance(self.encoder, DendriticEncoder)
        settings = self.config.heads if last else replace(self.config.heads, refit=False)
        path = None
        if self.folder is not None:
            parts = [self.encoder.fingerprint, train.digest, "" if dev is None else dev.digest]
            content = json.dumps([*parts, settings.settings()])
            name = hashlib.sha256(content.encode()).hexdigest()[:16]
            path = self.folder / "heads" / f"{name}.safetensors"
            if path.is_file():
                return DendriticHead.load(path)
        result = finetune(self.encoder, train, dev, settings, index=self.index)
        head = result.encoder.query_head or DendriticHead.untrained(self.encoder.dimension)
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            with written_whole(path) as draft:
                head.save(draft)
        return head

    def _parts(
        self, train: RetrievalDataset, dev: RetrievalDataset | None
    ) -> tuple[list[Part], str]:
        config = self.config
        pairs = [(train, dev)]
        judged_by = "dev"
        if dev is None or len(dev) < config.enough:
            folds = self.questions.split(
                *[1.0] * config.folds, by=config.split_by, seed=config.seed
            )
            pairs = []
            for fold in folds:
                rest = [id_ for id_ in self.questions.queries if id_ not in fold.queries]
                pairs.append((self.questions.subset(rest), fold))
            judged_by = f"{config.folds} folds by {config.split_by}"
        parts = [
            Part(rest=rest, judged=judged, encoder=self.encoder, index=self.index)
            for rest, judged in pairs
            if judged is not None
        ]
        return parts, judged_by

    def _nudged(self, parts: Sequence[Part]) -> tuple[float, list[Part]]:
        """Return the best γ, and the parts with vectors moved by the γ that the others choose."""
        curves = []
        for part in parts:
            tried = NudgeConfig(metric=self.config.metric, dry_run=True)
            overlay = Overlay(part.index)
            result = nudge_index(overlay, part.encoder, part.rest, part.judged, tried)
            curves.append(
                {gamma: value * len(part.judged) for gamma, value in result.curve.items()}
            )
        moved = []
        for number, part in enumerate(parts):
            others = [c for n, c in enumerate(curves) if n != number] or curves
            overlay = Overlay(part.index)
            fixed = NudgeConfig(gamma=_best_gamma(others))
            nudge_index(overlay, part.encoder, part.rest, config=fixed)
            moved.append(replace(part, index=overlay))
        return _best_gamma(curves), moved

    def _values(self, parts: Sequence[Part], *, learn: bool = False) -> Values:
        """Return the metric per weight and judging question: float64 (n_weights, n_judged)."""
        if self.lexical is None or not learn:
            found = [self._judge(part, self.lexical) for part in parts]
        else:
            found = []
            with self.lexical.trial() as words:
                for part in parts:
                    words.learn(part.rest.queries, part.rest.relevant_docs)
                    found.append(self._judge(part, words))
                    words.forget(part.rest.queries)
        return np.concatenate(found, axis=1)

    def _judge(self, part: Part, lexical: LexicalIndex | None) -> Values:
        names, texts = list(part.judged.queries), list(part.judged.queries.values())
        vectors = part.encoder.encode_queries(texts)
        k = metric_depth(self.config.metric)
        runs: list[dict[str, list[str]]] = [{} for _ in self.weights]
        for start in progress_bar(range(0, len(texts), _BATCH), desc="judge", unit="batch"):
            batch = slice(start, start + _BATCH)
            if lexical is None:
                found = part.index.search(vectors[batch], k).ids
                runs[0].update(zip(names[batch], found, strict=True))
                continue
            joined = Union(part.index, lexical, texts[batch], vectors[batch], max(_DEPTH, k))
            for name, candidates in zip(names[batch], joined.candidates(), strict=True):
                for run, weight in zip(runs, self.weights, strict=True):
                    run[name] = _best(candidates, weight, k)
        metric, relevant = self.config.metric, part.judged.relevant_docs
        return np.stack([score_rankings(run, relevant, [metric])[metric] for run in runs])

    def _stage(self, name: str, setting: str, before: Values, after: Values) -> Stage:
        """Hold two variants against each other, each at the weight that other questions choose."""
        return self._compared(name, setting, self._nested(before), self._nested(after), guard=False)

    def _weight(self, values: Values) -> tuple[float, Stage]:
        """Return the weight: the best one, or the better side alone unless the gain is real."""
        sides = [row for row, w in enumerate(self.weights) if w == 0 or math.isinf(w)]
        best = int(values.mean(axis=1).argmax())
        side = max(sides, key=lambda row: values[row].mean(), default=best)
        both = self._nested(values)
        stage = self._compared("weight", f"{self.weights[best]:g}", values[side], both, guard=True)
        if best == side or not stage.kept:
            alone = "words" if self.weights[side] else "vectors"
            stage = replace(stage, kept=False, setting=f"{alone} alone")
            return self.weights[side], stage
        return self.weights[best], stage

    def _compared(
        self, name: str, setting: str, before: Values, after: Values, *, guard: bool
    ) -> Stage:
        change = after - before
        low, high = mean_interval(change, self.config.confidence, self.config.seed)
        return Stage(
            name=name,
            setting=setting,
            before=float(before.mean()),
            after=float(after.mean()),
            gain=float(change.mean()),
            interval=(low, high),
            kept=bool((low if guard else change.mean()) > 0),
        )

    def _nested(self, values: Values) -> Values:
        """Return each question's value at the weight that the others choose: (n_questions,)."""
        order = np.random.default_rng(self.config.seed).permutation(values.shape[1])
        chosen = np.zeros(len(order))
        for group in range(_GROUPS):
            judged, others = order[group::_GROUPS], np.delete(order, np.s_[group::_GROUPS])
            best = int(values[:, others].mean(axis=1).argmax())
            chosen[judged] = values[best, judged]
        return chosen


def with_query_head(encoder: Encoder, head: DendriticHead) -> Encoder:
    """Return the encoder with another head for questions; its documents' vectors stay."""
    assert isinstance(encoder, DendriticEncoder)
    return encoder.with_heads(query_head=head, document_head=encoder.document_head)


def _best(candidates: Candidates, weight: float, k: int) -> list[str]:
    shares = candidates.shares
    alone = math.isinf(weight)
    scores = shares if alone else candidates.similarities + weight * shares
    order = np.argsort(-scores, kind="stable")[:k].tolist()
    return [candidates.ids[row] for row in order if not alone or shares[row] > 0]


def _best_gamma(curves: Sequence[dict[float, float]]) -> float:
    """Return the γ with the highest sum over the curves, the smallest of equals."""
    return max(curves[0], key=lambda gamma: (sum(curve[gamma] for curve in curves), -gamma))
