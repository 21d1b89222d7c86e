"""Sentence pairs with scores."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nexus_integrations.data.files import check_named_texts, digest, open_text, reading_csv
from nexus_integrations.protocols import Floats


@dataclass(frozen=True, kw_only=True)
class SimilarityDataset:
    """Sentence pairs with a similarity score each, as in the STS Benchmark.

    `scores` is float32 (n,), scaled to 0..1 from `scale`. Raises `ValueError` for an empty dataset,
    sides of different length, a blank sentence, or a score outside the scale; each names the pair.
    """

    sentences1: list[str]
    sentences2: list[str]
    scores: Floats = field(repr=False)

    def __post_init__(self) -> None:
        if not len(self.sentences1) == len(self.sentences2) == len(self.scores):
            raise ValueError(
                f"{len(self.sentences1)} first and {len(self.sentences2)} second sentences, "
                f"{len(self.scores)} scores: expected equal numbers"
            )
        if not self.sentences1:
            raise ValueError("the dataset is empty")
        for side in (self.sentences1, self.sentences2):
            check_named_texts("sentence of pair", {str(row): text for row, text in enumerate(side)})
        scores = np.asarray(self.scores, dtype=np.float32)
        bad = ~((scores >= 0) & (scores <= 1))
        if bad.any():
            raise ValueError(
                f"pair {int(np.argmax(bad))} has the scaled score {scores[np.argmax(bad)]}, "
                "outside 0..1: give the scale of your scores"
            )
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.sentences1)

    def __repr__(self) -> str:
        """Counts only: a repr ends up in logs, where no text belongs."""
        return f"SimilarityDataset({len(self)} pairs)"

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over sentences and scores, which it does not give away."""
        return digest([self.sentences1, self.sentences2, self.scores.tolist()])

    def subset(self, rows: Sequence[int]) -> "SimilarityDataset":
        """Return the dataset of the pairs with these numbers."""
        return SimilarityDataset(
            sentences1=[self.sentences1[row] for row in rows],
            sentences2=[self.sentences2[row] for row in rows],
            scores=self.scores[list(rows)],
        )

    @classmethod
    def from_csv(
        cls, path: str | Path, *, scale: tuple[float, float] = (0.0, 5.0)
    ) -> "SimilarityDataset":
        """Read rows of sentence1, sentence2, score without a header (`.csv` or `.csv.gz`)."""
        with reading_csv(Path(path)), open_text(Path(path)) as file:
            rows = list(csv.reader(file))
        for number, row in enumerate(rows):
            if len(row) != 3:
                raise ValueError(f"row {number} of {path} has {len(row)} fields, expected 3")
        return cls._scaled(rows, scale)

    @classmethod
    def from_hub(
        cls,
        name: str = "mteb/stsbenchmark-sts",
        *,
        split: str = "train",
        columns: tuple[str, str, str] = ("sentence1", "sentence2", "score"),
        scale: tuple[float, float] = (0.0, 5.0),
    ) -> "SimilarityDataset":
        """Read sentence pairs with the `datasets` library: a hub name or a local folder."""
        import datasets

        rows = datasets.load_dataset(name, split=split)
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise ValueError(f"{name} has no column {missing[0]!r}: {', '.join(rows.column_names)}")
        return cls._scaled([[row[column] for column in columns] for row in rows], scale)

    @classmethod
    def _scaled(
        cls, rows: Sequence[Sequence[Any]], scale: tuple[float, float]
    ) -> "SimilarityDataset":
        low, high = scale
        if not low < high:
            raise ValueError(f"scale must be (lowest, highest), not {scale}")
        scores = np.empty(len(rows))
        for number, row in enumerate(rows):
            try:
                scores[number] = float(row[2])
            except (TypeError, ValueError):
                raise ValueError(f"pair {number} has a score that is no number") from None
            if not low <= scores[number] <= high:
                raise ValueError(
                    f"pair {number} has the score {row[2]}, outside {low:g}..{high:g}: give the "
                    "scale of your scores"
                )
        return cls(
            sentences1=[row[0] for row in rows],
            sentences2=[row[1] for row in rows],
            scores=((scores - low) / (high - low)).astype(np.float32),
        )
