"""The report of a run: one HTML file by which a person judges what came of it."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import Comparison, Evaluation, compare
from nexus_integrations.nudge import NudgeResult, NudgeState, StateFolder
from nexus_integrations.protocols import VectorIndex
from nexus_integrations.report.moves import Moves, file_hashes
from nexus_integrations.training.result import FinetuneResult

__all__ = ["Moves", "Report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done, on what, and what came of it; `of` makes one, `save` writes it as a page.

    `stages` are evaluations of the same questions, the first before, the last after everything.
    `learning_curve` maps numbers of training questions to the gain that they gave; `artefacts` maps
    names of saved files to their SHA-256. `dataset`, that of the evaluations, is read where texts
    are asked for, and nowhere else.

    Raises `ValueError` for fewer than two stages, stages without questions or of different
    questions or metrics, and heads or a nudge of an encoder that no stage used.
    """

    stages: Mapping[str, Evaluation]
    training: FinetuneResult | None = None
    nudge: NudgeResult | None = None
    moves: Moves | None = None
    learning_curve: Mapping[int, Comparison] = field(default_factory=dict)
    artefacts: Mapping[str, str] = field(default_factory=dict)
    dataset: RetrievalDataset | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_comparable(self.stages)
        used = {stage.fingerprint for stage in self.stages.values()}
        for what, record in (("the heads", self.training), ("the nudge", self.nudge)):
            if record is not None and "" not in used and record.fingerprint not in used:
                raise ValueError(
                    f"{what} belong to an encoder that none of the evaluations used (its "
                    "fingerprint differs): evaluate with the encoder that the report is of"
                )

    @classmethod
    def of(
        cls,
        stages: Mapping[str, Evaluation],
        *,
        finetuned: FinetuneResult | None = None,
        nudged: NudgeResult | StateFolder | None = None,
        index: VectorIndex | None = None,
        dataset: RetrievalDataset | None = None,
        learning_curve: Mapping[int, Comparison] | None = None,
        folders: Sequence[str | Path] = (),
    ) -> "Report":
        """Make a report of what the package's functions returned.

        `stages` maps names to evaluations, as in {"before": …, "after": …}. The map of documents
        that moved shows a sample of `index` behind them. The hash of every file in `folders`, as in
        the saved encoder's, is listed. Raises `ValueError` as the class does, and for a
        `StateFolder` that holds no nudge.
        """
        record, state = _nudged(nudged)
        return cls(
            stages=dict(stages),
            training=finetuned,
            nudge=record if state is None else NudgeResult.of_state(state, record),
            moves=None if state is None else Moves.of(state, index),
            learning_curve=learning_curve or {},
            artefacts=file_hashes(folders),
            dataset=dataset,
        )

    @property
    def before(self) -> Evaluation:
        """The first stage."""
        return next(iter(self.stages.values()))

    @property
    def after(self) -> Evaluation:
        """The last stage."""
        return list(self.stages.values())[-1]

    @cached_property
    def comparison(self) -> Comparison:
        """The last stage against the first, question by question."""
        return compare(self.before, self.after)

    def save(self, path: str | Path, *, include_text: bool = False) -> None:
        """Write the report as one HTML file, which loads nothing from anywhere.

        It holds ids, numbers and hashes. With `include_text` it also shows questions and passages,
        from the report's dataset. Of very many questions those that changed most are listed, within
        some megabytes. The file appears whole or not at all.

        Raises `ValueError` for `include_text` without a dataset, or with one that lacks a question,
        and `OSError` for a folder that cannot be written to.
        """
        from nexus_integrations.report.page import render

        path = Path(path)
        page = render(self, include_text=include_text)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            # A lone surrogate, as PDF extraction leaves them, has no encoding.
            draft.write_bytes(page.encode("utf-8", "replace"))
            draft.replace(path)
        except OSError as error:
            raise type(error)(
                error.errno, f"the report cannot be written ({error.strerror})", str(path)
            ) from None
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def _nudged(
    nudged: NudgeResult | StateFolder | None,
) -> tuple[NudgeResult | None, NudgeState | None]:
    """Return what is told of a nudge, and its state where it is in place."""
    if nudged is None:
        return None, None
    if isinstance(nudged, NudgeResult):
        folder = nudged.folder if nudged.written else None
        return nudged, None if folder is None else folder.state
    told = None if nudged.folder is None else NudgeResult.of_folder(nudged.folder)
    if nudged.state is None and (told is None or told.written):
        raise ValueError(f"{nudged.folder} holds no nudge: it was undone, or there was none")
    return told, nudged.state


def _check_comparable(stages: Mapping[str, Evaluation]) -> None:
    if len(stages) < 2:
        raise ValueError(
            f"a report compares at least two evaluations, before and after, not {len(stages)}"
        )
    (first, before), *others = stages.items()
    if not before.query_ids or not before.per_query:
        raise ValueError("the evaluations hold no question: there is nothing to report")
    for name, stage in others:
        hashes = {before.questions_sha256, stage.questions_sha256} - {""}
        if (
            len(hashes) > 1
            or stage.query_ids != before.query_ids
            or set(stage.per_query) != set(before.per_query)
        ):
            raise ValueError(
                f"{first!r} and {name!r} are not evaluations of the same questions and metrics: "
                "evaluate every stage with the same dataset"
            )
