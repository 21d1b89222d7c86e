"""The numbers of a training: its epochs, and what it leaves beside a tuned encoder.

Numbers and hashes: no text, no ids.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nexus_integrations.files import write_json

if TYPE_CHECKING:
    from nexus_integrations.training.recipe import FinetuneResult


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
class TrainingRecord:
    """How heads were trained: a `FinetuneResult` without its encoder.

    `FinetuneResult.save` keeps it as `training.json` in the encoder's folder.
    """

    heads: str
    dendrites: int
    metric: str
    baseline_score: float
    score: float
    gamma: float | None
    dev_source: str
    dropped: int
    seconds: float
    embedding_seconds: float
    fingerprint: str
    document_fingerprint: str
    history: list[Epoch] = field(repr=False)

    @classmethod
    def of(cls, result: "FinetuneResult") -> "TrainingRecord":
        """Take over what a report shows."""
        query, document = result.encoder.query_head, result.encoder.document_head
        return cls(
            heads="query" if document is None else "shared" if query is document else "separate",
            dendrites=max((h.dendrites for h in (query, document) if h is not None), default=0),
            metric=result.metric,
            baseline_score=result.baseline_score,
            score=result.score,
            gamma=result.gamma,
            dev_source=result.dev_source,
            dropped=result.dropped,
            seconds=result.seconds,
            embedding_seconds=result.embedding_seconds,
            fingerprint=result.encoder.fingerprint,
            document_fingerprint=result.encoder.document_fingerprint,
            history=list(result.history),
        )

    def save(self, folder: str | Path) -> None:
        """Write `training.json` into `folder`: numbers and hashes."""
        write_json(Path(folder) / "training.json", asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingRecord | None":
        """Read what `save` wrote, None where it did not; raises `ValueError` when damaged."""
        path = Path(folder) / "training.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            history = [Epoch(**epoch) for epoch in content.pop("history")]
            return cls(history=history, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from None
