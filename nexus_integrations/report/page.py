"""The report as a page: figures, a table of questions, and nothing that is loaded.

Whatever comes from outside, ids included, reaches the page through Jinja's escaping, as JSON with
<, > and & escaped, or as text of an SVG that is parsed and written again. The page's policy admits
one script, by its hash, and no request whatever.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

import nexus_integrations
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import Evaluation
from nexus_integrations.report import plots

if TYPE_CHECKING:
    from nexus_integrations.report import Report

_QUESTIONS = 2_000  # more rows than a person reads
_BYTES = 5 * 2**20  # what the rows and their texts may take
_LISTED = 10  # documents of a ranked list
_TEXT = 1_200  # characters of a passage
_ID = 160  # characters of an id
_FURTHEST = 10

_NAMES = {"ndcg": "nDCG", "mrr": "MRR", "recall": "Recall", "precision": "Precision"}
_MEANINGS = {
    "ndcg": "nDCG@k looks at the first k documents: 1 if the right ones stand on top, less the "
    "lower they stand, 0 if none is there.",
    "mrr": "MRR@k is one over the rank of the first right document, 0 if it is below rank k.",
    "recall": "Recall@k is the share of the right documents that are among the first k.",
    "precision": "Precision@k is the share of the first k documents that are right.",
}


def render(report: "Report", *, include_text: bool = False) -> str:
    """Return the page; see `Report.save`."""
    texts = _texts(report, include_text)
    labels = {metric: _label(metric) for metric in report.before.metrics}
    metric = "ndcg@10" if "ndcg@10" in labels else next(iter(labels))
    changes = report.after.per_query[metric] - report.before.per_query[metric]
    data = _questions(report, labels, changes, texts)
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= {
        "number": _number,
        "signed": _signed,
        "count": _count,
        "percent": lambda share: f"{share:.0%}".replace("%", " %"),
        "id": _clipped_id,
        "label": _label,
        "first_part": lambda label: label.partition("@")[0].lower(),
        "meaning": lambda metric: _MEANINGS[metric.partition("@")[0]],
        "fingerprint": lambda digest: " ".join(digest[i : i + 8] for i in range(0, 64, 8)),
    }
    return environment.from_string(_part("page.html")).render(
        report=report,
        metric=metric,
        labels=labels,
        change=report.comparison,
        data=data,
        figures=_figures(report, metric, labels, changes),
        furthest=_furthest(report),
        include_text=texts is not None,
        made=datetime.now(timezone.utc),
        version=nexus_integrations.__version__,
        script=Markup(script),
        script_hash=digest,
        style=Markup(_part("page.css")),
    )


def _texts(report: "Report", include_text: bool) -> RetrievalDataset | None:
    if not include_text:
        return None
    if report.dataset is None:
        raise ValueError("include_text needs the dataset that was evaluated: give the report one")
    lost = [id_ for id_ in report.before.query_ids if id_ not in report.dataset.queries]
    if lost:
        raise ValueError(
            f"the dataset lacks question {lost[0]!r} ({len(lost)} such questions): give the "
            "dataset that was evaluated"
        )
    return report.dataset


def _figures(
    report: "Report", metric: str, labels: Mapping[str, str], changes: NDArray[np.float64]
) -> dict[str, Markup]:
    """Return the figures that there is something for, as SVG."""
    label = labels[metric]
    drawn = {
        "stages": (
            plots.stages_figure(report.stages, labels),
            f"{label} and the other metrics at each stage, with intervals; the values are in the "
            "table above.",
        ),
        "changes": (
            plots.changes_figure(changes, label),
            f"The change in {label} of every question, sorted: {(changes > 0).sum()} better, "
            f"{(changes == 0).sum()} equal, {(changes < 0).sum()} worse.",
        ),
    }
    training, nudge, moves = report.training, report.nudge, report.moves
    if training is not None and training.history:
        drawn["growth"] = (
            plots.growth_figure(training.history, training.baseline_score),
            "Dev score and number of parameters after each epoch; the values are below.",
        )
    if nudge is not None and nudge.curve:
        drawn["gamma"] = (
            plots.gamma_figure(nudge.curve, nudge.gamma, _label(nudge.metric)),
            f"{_label(nudge.metric)} at each γ tried; the values are below.",
        )
    gains = report.learning_curve.values()
    if gains and all(metric in gain.differences for gain in gains):
        drawn["learning"] = (
            plots.learning_figure(report.learning_curve, metric, label),
            f"Gain in {label} against the number of training questions; the values are below.",
        )
    inline = {name: plots.inline_svg(figure, name, told) for name, (figure, told) in drawn.items()}
    if moves is not None and moves.document_ids:
        rows, background = moves.drawn, moves.background
        base = moves.base[rows]
        titles = {
            f"move-{number}": f"{_clipped_id(moves.document_ids[row])}: moved by "
            f"{moves.distances[row]:.3f}, answers {moves.questions[row]}"
            for number, row in enumerate(rows)
        }
        inline["map"] = plots.inline_svg(
            plots.map_figure(base, base + moves.stretch * (moves.moved[rows] - base), background),
            "map",
            f"A map of {len(rows)} documents that moved, each an arrow, over those that did not.",
            titles,
        )
    return {name: Markup(svg) for name, svg in inline.items()}


def _furthest(report: "Report") -> list[dict[str, Any]]:
    if report.moves is None:
        return []
    moves = report.moves
    return [
        {"id": id_, "distance": float(distance), "questions": questions}
        for id_, distance, questions in zip(
            moves.document_ids[:_FURTHEST],
            moves.distances[:_FURTHEST],
            moves.questions[:_FURTHEST],
            strict=True,
        )
    ]


def _questions(
    report: "Report",
    labels: Mapping[str, str],
    changes: NDArray[np.float64],
    texts: RetrievalDataset | None,
) -> dict[str, Any]:
    """Return what the page's table shows, for at most so many questions and bytes.

    A question holds its values per metric, before and after, and its two ranked lists: numbers of
    documents and their similarities.
    """
    before = report.before
    documents: dict[str, int] = {}
    new: list[str] = []
    questions: list[dict[str, Any]] = []
    size = 0

    def known(id_: str) -> int:
        if id_ not in documents:
            new.append(id_)
        return documents.setdefault(id_, len(documents))

    for row in islice(_by_interest(changes), _QUESTIONS):
        new.clear()
        question = _question(report, row, labels, known)
        if texts is not None:
            question["text"] = _clipped(texts.queries[before.query_ids[row]], _TEXT)
        shown = [_clipped_id(found) for found in new]
        if texts is not None:
            shown += [_clipped(texts.corpus.get(found, ""), _TEXT) for found in new]
        size += len(json.dumps([question, shown], ensure_ascii=False).encode("utf-8", "replace"))
        if size > _BYTES:
            for found in new:
                del documents[found]
            break
        questions.append(question)
    content = {
        "metrics": list(labels.values()),
        "stages": [_clipped_id(name) for name in (next(iter(report.stages)), [*report.stages][-1])],
        "documents": [_clipped_id(found) for found in documents],
        "questions": questions,
    }
    if texts is not None:
        content["texts"] = [_clipped(texts.corpus.get(found, ""), _TEXT) for found in documents]
    return content


def _question(
    report: "Report", row: int, labels: Mapping[str, str], known: Callable[[str], int]
) -> dict[str, Any]:
    """Return a question's values and lists; `known` turns a document's id into its number."""
    before, after = report.before, report.after
    return {
        "id": _clipped_id(before.query_ids[row]),
        "values": [
            [round(float(stage.per_query[metric][row]), 6) for metric in labels]
            for stage in (before, after)
        ],
        "lists": [_ranked(stage, row, known) for stage in (before, after)],
        "relevant": [known(found) for found in after.relevant[row]] if after.relevant else [],
    }


def _ranked(stage: Evaluation, row: int, known: Callable[[str], int]) -> list[list[Any]] | None:
    """Return document numbers and similarities; None where the evaluation holds no lists.

    A similarity that is not known is None.
    """
    if stage.hits is None:
        return None
    ids = stage.hits.ids[row][:_LISTED]
    similarities = stage.hits.similarities[row, : len(ids)].tolist()
    return [
        [known(id_) for id_ in ids],
        [round(value, 4) if np.isfinite(value) else None for value in similarities],
    ]


def _by_interest(changes: NDArray[np.float64]) -> Iterator[int]:
    """Yield rows by turns from the greatest gain and the greatest loss, then those unchanged."""
    order = np.argsort(-changes, kind="stable").tolist()
    better = [row for row in order if changes[row] > 0]
    worse = [row for row in reversed(order) if changes[row] < 0]
    for turn in range(max(len(better), len(worse))):
        yield from better[turn : turn + 1]
        yield from worse[turn : turn + 1]
    yield from (row for row in order if changes[row] == 0)


def _label(metric: str) -> str:
    """Return "nDCG@10" for "ndcg@10"."""
    name, _, depth = metric.partition("@")
    return f"{_NAMES.get(name, name)}@{depth}"


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    """Return "+0.012", "−0.012" or "0.000"."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "−")


def _count(number: int) -> str:
    """Return "12,345"."""
    return f"{number:,}"


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _clipped_id(id_: str) -> str:
    return _clipped(id_, _ID)


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
