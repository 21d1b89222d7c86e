"""What a training leaves: its numbers, and the tuned encoder. This file imports no PyTorch."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.records import Record
from nexus_integrations.training.config import FinetuneConfig

_RECORD = "training.json"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training.

    `score` is the dev score after it (nDCG@10, or Spearman's ρ for sentence pairs; NaN where dev is
    trained on), `dendrites` how many the heads had grown, `parameters` how many numbers were
    trained, `seconds` the time since training began.
    """

    epoch: int
    dendrites: int
    loss: float
    score: float
    parameters: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(Record):
    """A trained encoder and how it came about; `print` shows it in a few lines.

    `config` has the settings of the training, defaults included. `history` holds every epoch, of
    averaged runs one after another; `baseline_score` and `score` are the dev score (`metric`:
    nDCG@10, or Spearman's ρ of sentence pairs) before and after, the latter before any refit.
    `dendrites` is how many were kept. `gamma` is the γ of a NUDGE-N with the training queries that
    serves the dev queries best (None for sentence pairs and after the backbone was trained): after
    a refit, which has seen the dev queries, it is the one to nudge with. `dev_source` tells where
    the dev set came from, `repeated` how many dev queries nearly equal a training query (see
    `near_duplicates`; a dev score over such tells less), `dropped` how many queries without a
    relevant document were left out, `seconds` the time of training alone and `embedding_seconds`
    that of embedding the texts. The fingerprints are those of the encoder.
    """

    metric: Literal["ndcg@10", "spearman"]
    baseline_score: float
    score: float
    dendrites: int
    gamma: float | None
    dev_source: str
    dropped: int
    repeated: int
    seconds: float
    embedding_seconds: float
    fingerprint: str
    document_fingerprint: str
    config: FinetuneConfig
    history: list[Epoch] = field(repr=False)

    @classmethod
    def of(cls, encoder: DendriticEncoder | Path, **numbers: Any) -> "FinetuneResult":
        """Return the result with its encoder, or with the folder that the encoder is saved in."""
        result = cls(**numbers)
        object.__setattr__(result, "_encoder_or_folder", encoder)
        return result

    @cached_property
    def encoder(self) -> DendriticEncoder:
        """The tuned encoder; a loaded result reads it on first use.

        Raises what `DendriticEncoder.load` raises.
        """
        given: DendriticEncoder | Path = self.__dict__["_encoder_or_folder"]
        return DendriticEncoder.load(given) if isinstance(given, Path) else given

    @property
    def heads(self) -> str:
        """The kind of heads: "query", "shared" or "separate"."""
        return str(self.config.heads)

    def save(self, folder: str | Path) -> None:
        """Save the encoder and, beside it, how it was trained: `training.json`, without any text.

        Raises what `DendriticEncoder.save` raises.
        """
        self.encoder.save(folder)
        super().save(Path(folder) / _RECORD)

    @classmethod
    def load(cls, folder: str | Path) -> "FinetuneResult":
        """Read what `save` wrote; the encoder is not read before it is used.

        Raises `FileNotFoundError` where nothing was saved and `ValueError` for a damaged file.
        """
        result = super().load(Path(folder) / _RECORD)
        object.__setattr__(result, "_encoder_or_folder", Path(folder))
        return result

    def __str__(self) -> str:
        label = {"ndcg@10": "nDCG@10", "spearman": "Spearman's ρ"}[self.metric]
        plural = "" if self.dendrites == 1 else "s"
        lines = [
            f"dev {label} {self.baseline_score:.4f} → {self.score:.4f} (dev: {self.dev_source})",
            f"heads: {self.heads}, with {self.dendrites} dendrite{plural}; {len(self.history)} "
            f"epochs in {self.seconds:.0f} s, and {self.embedding_seconds:.0f} s of embedding",
        ]
        if self.gamma is not None:
            lines.append(f"γ = {self.gamma:g} suits the dev questions best")
        if self.repeated:
            lines.append(
                f"{self.repeated} dev questions nearly repeat a training question: the dev score "
                "tells less of new questions"
            )
        if self.dropped:
            lines.append(f"{self.dropped} questions without a relevant passage were left out")
        return "\n".join(lines)
