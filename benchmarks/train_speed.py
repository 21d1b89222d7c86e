"""An epoch of training all weights, against SentenceTransformerTrainer, side by side in one run.

`python -m benchmarks.train_speed DIR --seeds 0 1` reads the STS Benchmark's folder. Both train the
same model on the same pairs with the same loss (mean squared error of the cosine), batch,
optimizer, dropout and constant rate, on the same cores: ours, theirs, and ours again, because the
speed of a machine changes. Dev and test Spearman are of float32 vectors. The trainer needs
`pip install accelerate`. The benchmark appends a row for each seed to OUTPUT.jsonl and writes
OUTPUT.md from all rows.
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.mean import Mean
from benchmarks.record import Row, append_row, file_of, machine, read_rows, table, write_page
from benchmarks.sts.runs import STSBenchmark, similarity_score
from nexus_integrations import DendriticEncoder, SimilarityDataset
from nexus_integrations.backends.torch import TorchBackbone
from nexus_integrations.training.heads import Heads, exported
from nexus_integrations.training.loop import Schedule, new_optimizer, own_randomness, train_epoch
from nexus_integrations.training.text_objectives import TextSimilarityObjective
from nexus_integrations.training.tower import Tower

_RATE, _DECAY = 2e-5, 0.01

_PAGE = """# An epoch of all weights

Written by `python -m benchmarks.train_speed` from the rows in [{file}.jsonl]({file}.jsonl): the STS
Benchmark's {pairs:,} train pairs, batches of {batch}, all-MiniLM-L6-v2, against
`SentenceTransformerTrainer`. Seconds of an epoch; ours are the mean of one before theirs and one
after, where there are two. Spearman's ρ after {epochs} epoch.
"""


def main() -> None:
    """Train both with every seed and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=5749, help="how many training pairs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/results/train_speed"))
    options = parser.parse_args()
    path = file_of(options.output, ".jsonl")
    if options.folder is not None:
        data = STSBenchmark.read(options.folder)
        for seed in options.seeds:
            options.seed = seed
            append_row(path, _row(data, options))
    write_page(options.output, page(read_rows(path), options.output.name))


def _row(data: STSBenchmark, options: argparse.Namespace) -> Row:
    train = data.train.subset(range(min(options.pairs, len(data.train))))
    backbone = DendriticEncoder.load(backend="torch").backbone
    assert isinstance(backbone, TorchBackbone)
    row: Row = {"pairs": len(train)}
    row |= {name: getattr(options, name) for name in ("batch", "epochs", "seed")}
    for name, fit in (("before", _ours), ("theirs", _theirs), ("ours", _ours)):
        seconds, trained = fit(copy.deepcopy(backbone.model), train, options)
        row[name] = {
            "seconds": round(seconds / options.epochs, 1),
            "dev": round(similarity_score(trained, data.dev), 4),
            "test": round(similarity_score(trained, data.test), 4),
        }
        print(name, row[name], flush=True)
    return {**row, "machine": machine("torch", "sentence-transformers")}


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    lines = []
    figures: list[list[float]] = []
    for row in rows:
        theirs = row["theirs"]["seconds"]
        # The first row, of seed 42, is of a run that had ours after theirs alone.
        ours = [row[part]["seconds"] for part in ("before", "ours") if part in row]
        differences = [row["ours"][part] - row["theirs"][part] for part in ("dev", "test")]
        figures.append([len(ours) * theirs / sum(ours), *differences])
        lines.append(
            [
                str(row["seed"]),
                ", ".join(f"{seconds:.0f}" for seconds in ours),
                f"{theirs:.0f}",
                f"{figures[-1][0]:.2f}",
                *(f"{value:+.4f}" for value in differences),
            ]
        )
    speed, *means = (Mean.of(column) for column in zip(*figures, strict=True))
    lines.append(["mean", "", "", f"{speed.mean:.2f}", *(mean.signed for mean in means)])
    head = _PAGE.format(file=file, **{key: rows[0][key] for key in ("pairs", "batch", "epochs")})
    columns = ["seed", "ours, s", "theirs, s", "times as fast", "ours − theirs: dev", "test"]
    made = rows[0]["machine"]
    cores = f"{made['cores']} cores" if "cores" in made else made["processor"]
    return "\n".join(
        [
            head,
            table(columns, lines),
            f"Intervals are 95 %, over seeds (Student's t). {cores}, torch {made['torch']}.\n",
        ]
    )


def _theirs(
    model: SentenceTransformer, train: SimilarityDataset, options: argparse.Namespace
) -> tuple[float, DendriticEncoder]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    rows = {"sentence1": train.sentences1, "sentence2": train.sentences2, "score": train.scores}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=Arguments(
                output_dir=folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=options.batch,
                learning_rate=_RATE,
                weight_decay=_DECAY,
                lr_scheduler_type="constant",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=options.seed,
            ),
            train_dataset=Dataset.from_dict(rows),
            loss=CosineSimilarityLoss(model),
        )
        begun = perf_counter()
        trainer.train()
        seconds = perf_counter() - begun
    return seconds, DendriticEncoder(TorchBackbone(model))


def _ours(
    model: SentenceTransformer, train: SimilarityDataset, options: argparse.Namespace
) -> tuple[float, DendriticEncoder]:
    tower = Tower(model.requires_grad_(True), dropout=True)
    begun = perf_counter()
    tokens = tower.tokens([*train.sentences1, *train.sentences2], "document")
    objective = TextSimilarityObjective(
        tower=tower,
        sentences=tokens,
        scores=torch.from_numpy(train.scores),
        dev_sentences=tokens,
        dev_scores=torch.from_numpy(train.scores),
        loss_name="cosine",
        scale=1.0,
    )
    schedule = Schedule(
        epochs=options.epochs,
        learning_rate=_RATE,
        backbone_rate=_RATE,
        batch_size=options.batch,
        weight_decay=_DECAY,
        constant=True,
    )
    heads = Heads(tower.dimension, "shared")
    optimizer = new_optimizer(heads, objective, schedule)
    generator = torch.Generator().manual_seed(options.seed)
    with own_randomness(options.seed):
        for epoch in range(options.epochs):
            train_epoch(heads, objective, optimizer, schedule, generator, cycle=0, epoch=epoch)
    seconds = perf_counter() - begun
    head = exported(heads.first.layer)
    return seconds, DendriticEncoder(tower.backbone(), query_head=head, document_head=head)


if __name__ == "__main__":
    main()
