"""An epoch of training all weights, against SentenceTransformerTrainer, side by side in one run.

`python -m benchmarks.train_speed DIR` reads the STS Benchmark's folder. Both train the same model
on the same pairs by the same loss (mean squared error of the cosine), batch, optimizer and constant
rate, on the same cores, one after the other; dev and test Spearman are of float32 vectors. Needs
`pip install accelerate`, which the trainer asks for. Prints JSON.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

from nexus_integrations import DendriticEncoder, SimilarityDataset
from nexus_integrations.backends.torch import TorchBackbone
from nexus_integrations.training.fit import Schedule, new_optimizer, own_randomness, train_epoch
from nexus_integrations.training.heads import Heads, exported
from nexus_integrations.training.sts import STSBenchmark, machine, similarity_score
from nexus_integrations.training.texts import TextSimilarityObjective
from nexus_integrations.training.tower import Tower

_RATE, _DECAY = 2e-5, 0.01


def main() -> None:
    """Run both and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=5749, help="how many training pairs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    data = STSBenchmark.read(options.folder)
    train = data.train.subset(range(min(options.pairs, len(data.train))))
    encoder = DendriticEncoder.load(backend="torch")
    results = {}
    for name, fit in (("SentenceTransformerTrainer", _theirs), ("nexus", _ours)):
        model = copy.deepcopy(encoder.backbone.model)
        seconds, trained = fit(model, train, options)
        results[name] = {
            "seconds_per_epoch": round(seconds / options.epochs, 1),
            "dev": round(similarity_score(trained, data.dev), 4),
            "test": round(similarity_score(trained, data.test), 4),
        }
    theirs, ours = results.values()
    print(
        json.dumps(
            {
                "pairs": len(train),
                "batch": options.batch,
                "epochs": options.epochs,
                "machine": machine(),
                **results,
                "times_as_fast": round(theirs["seconds_per_epoch"] / ours["seconds_per_epoch"], 2),
                "dev_difference": round(ours["dev"] - theirs["dev"], 4),
                "test_difference": round(ours["test"] - theirs["test"], 4),
            },
            indent=1,
        )
    )


def _theirs(
    model: SentenceTransformer, train: SimilarityDataset, options: argparse.Namespace
) -> tuple[float, DendriticEncoder]:
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
    pieces = tower.pieces([*train.sentences1, *train.sentences2], "document")
    objective = TextSimilarityObjective(
        tower=tower,
        pieces=pieces.pieces,
        starts=pieces.starts,
        scores=torch.from_numpy(train.scores),
        dev_pieces=pieces.pieces,
        dev_starts=pieces.starts,
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
    heads = Heads(tower.dimension, "both")
    optimizer = new_optimizer(heads, objective, schedule)
    generator = torch.Generator().manual_seed(options.seed)
    with own_randomness(objective, options.seed):
        for epoch in range(options.epochs):
            train_epoch(heads, objective, optimizer, schedule, generator, cycle=0, epoch=epoch)
    seconds = perf_counter() - begun
    head = exported(heads.first.layer)
    return seconds, DendriticEncoder(tower.backbone(), query_head=head, document_head=head)


if __name__ == "__main__":
    main()
