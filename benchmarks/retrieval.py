"""Measure every stage of the main job on a real corpus: `python -m benchmarks.retrieval DIR`.

DIR is a BEIR folder with the splits train, dev and test, or a folder with LlamaIndex's
`train_dataset.json[.gz]` and `val_dataset.json[.gz]`, whose `val` asks about documents that were
never trained on. Heads are fitted on train, everything is chosen on dev, and test is evaluated for
each seed. Prints JSON: per stage the metrics with intervals, seconds, peak memory, seeds, machine.
"""

import argparse
import json
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from nexus_integrations import (
    DendriticEncoder,
    Evaluation,
    FinetuneConfig,
    NudgeConfig,
    RetrievalDataset,
    compare,
    evaluate,
    finetune,
    nudge_index,
)
from nexus_integrations.backends import Role
from nexus_integrations.backends.torch import TorchBackbone
from nexus_integrations.index import MemoryIndex
from nexus_integrations.types import Floats


class RememberingBackbone(TorchBackbone):
    """A backbone that embeds each text once, so that seeds and stages share the work."""

    def __init__(self, backbone: TorchBackbone) -> None:
        super().__init__(backbone.model)
        self._known: dict[tuple[str, str], Floats] = {}

    def encode(self, texts: Sequence[str], role: Role) -> Floats:
        """Return unit vectors, float32 (n, dimension)."""
        new = [text for text in dict.fromkeys(texts) if (role, text) not in self._known]
        for text, vector in zip(new, super().encode(new, role) if new else [], strict=True):
            self._known[role, text] = vector
        return np.stack([self._known[role, text] for text in texts])


def main() -> None:
    """Run the benchmark that the command line asks for and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sides", nargs="+", default=["query"], help="query both each")
    parser.add_argument("--dendrites", nargs="+", type=int, default=[0, 3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--refit", action="store_true", help="also train on train and dev")
    parser.add_argument("--model", help="folder or hub name; by default all-MiniLM-L6-v2")
    options = parser.parse_args()

    loaded = DendriticEncoder.load(options.model, backend="torch")
    encoder = DendriticEncoder(RememberingBackbone(loaded.backbone))
    train, dev, test = _read(options.folder)
    begun = perf_counter()
    index = _index(encoder, train)
    texts = [*train.queries.values(), *dev.queries.values(), *test.queries.values()]
    encoder.encode_queries(texts)
    test_index = index if test.corpus == train.corpus else _index(encoder, test)
    embedding = perf_counter() - begun

    base = evaluate(test_index, encoder, test)
    stages = {"base": _summary([base], [0.0])}
    if test_index is index:
        for solver in ("closed-form", "nudge-ft"):
            stages[f"base, nudge by {solver}"] = _nudged(index, encoder, train, dev, test, solver)
    for side in options.sides:
        for dendrites in options.dendrites:
            name = f"side={side}, dendrites={dendrites}"
            runs = [
                _run(
                    index,
                    test_index,
                    encoder,
                    train,
                    dev,
                    test,
                    side,
                    dendrites,
                    seed,
                    options.refit,
                )
                for seed in options.seeds
            ]
            for stage in runs[0]:
                summary = _summary(
                    [run[stage][0] for run in runs], [run[stage][1] for run in runs], base
                )
                summary["notes"] = [run[stage][2] for run in runs]
                stages[f"{name}: {stage}"] = summary
    print(
        json.dumps(
            {
                "folder": options.folder.name,
                "queries": {"train": len(train), "dev": len(dev), "test": len(test)},
                "documents": len(train.corpus),
                "seeds": options.seeds,
                "fingerprint": loaded.fingerprint,
                "embedding_seconds": round(embedding, 1),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
                "stages": stages,
            },
            indent=1,
        )
    )


def _read(folder: Path) -> tuple[RetrievalDataset, RetrievalDataset, RetrievalDataset]:
    if (folder / "qrels").is_dir():
        train, dev, test = (
            RetrievalDataset.from_beir(folder, split=split) for split in ("train", "dev", "test")
        )
        return train, dev, test
    files = [next(folder.glob(f"{name}_dataset.json*")) for name in ("train", "val")]
    trained, unseen = (RetrievalDataset.from_json(file) for file in files)
    train, dev = trained.split(0.85, 0.15, by="document", seed=0)
    return train, dev, unseen


def _index(encoder: DendriticEncoder, dataset: RetrievalDataset) -> MemoryIndex:
    return MemoryIndex(
        list(dataset.corpus), encoder.encode_documents(list(dataset.corpus.values()))
    )


def _nudged(
    index: MemoryIndex,
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset,
    test: RetrievalDataset,
    solver: str,
) -> dict[str, Any]:
    config = NudgeConfig(solver="nudge-ft" if solver == "nudge-ft" else "closed-form")
    report = nudge_index(index, encoder, train, dev, config)
    after = evaluate(index, encoder, test)
    report.undo(index)
    return {**_summary([after], [report.seconds]), "notes": [{"gamma": round(report.gamma, 4)}]}


def _run(
    index: MemoryIndex,
    test_index: MemoryIndex,
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset,
    test: RetrievalDataset,
    side: Any,
    dendrites: int,
    seed: int,
    refit_too: bool,
) -> dict[str, tuple[Evaluation, float, dict[str, Any]]]:
    """Return evaluation, seconds so far, and notes, per stage of one seed."""
    stages = {}
    for refit in (False, True) if refit_too else (False,):
        config = FinetuneConfig(side=side, dendrites=dendrites, seed=seed, refit=refit)
        result = finetune(encoder, train, dev, config, index=index)
        tuned, label = result.encoder, "refit" if refit else "head"
        notes = {"dendrites": 0 if tuned.query_head is None else tuned.query_head.dendrites}
        mapped = _mapped(test_index, tuned)
        stages[label] = (evaluate(mapped, tuned, test), result.seconds, notes)
        if test_index is not index:
            continue  # documents never seen: no question of theirs to nudge by
        if refit:  # dev was trained on, so γ is the one found before that
            known, judges = train.joined(dev), None
            nudge = NudgeConfig(gamma=result.gamma)
        else:
            known, judges, nudge = train, dev, NudgeConfig()
        report = nudge_index(mapped, tuned, known, judges, nudge)
        stages[f"{label} + NUDGE-N"] = (
            evaluate(mapped, tuned, test),
            result.seconds + report.seconds,
            {**notes, "gamma": report.gamma},
        )
    return stages


def _mapped(index: MemoryIndex, tuned: DendriticEncoder) -> MemoryIndex:
    """Copy an index of backbone vectors, mapped by the document head where there is one."""
    ids = [id_ for batch in index.ids() for id_ in batch]
    vectors = index.vectors(ids)
    head = tuned.document_head
    return MemoryIndex(ids, vectors if head is None else head.transform(vectors))


def _summary(
    runs: Sequence[Evaluation], seconds: Sequence[float], base: Evaluation | None = None
) -> dict[str, Any]:
    """Average over seeds; intervals are over questions, of each question's mean over seeds."""
    mean = Evaluation(
        metrics={m: float(np.mean([run.metrics[m] for run in runs])) for m in runs[0].metrics},
        intervals=runs[0].intervals,
        confidence=runs[0].confidence,
        query_ids=runs[0].query_ids,
        per_query={m: np.mean([run.per_query[m] for run in runs], axis=0) for m in runs[0].metrics},
    )
    summary: dict[str, Any] = {
        "metrics": {metric: round(value, 4) for metric, value in mean.metrics.items()},
        "ndcg@10 per seed": [round(run.metrics["ndcg@10"], 4) for run in runs],
        "intervals of the first seed": {
            metric: [round(bound, 4) for bound in bounds]
            for metric, bounds in runs[0].intervals.items()
        },
        "seconds per seed": [round(value, 2) for value in seconds],
    }
    if base is not None:
        gain = compare(base, mean)
        summary["ndcg@10 gain"] = {
            "mean": round(gain.differences["ndcg@10"], 4),
            "interval": [round(bound, 4) for bound in gain.intervals["ndcg@10"]],
        }
    return summary


if __name__ == "__main__":
    main()
