"""The model card: what an encoder is and how it came about, as Markdown.

A card holds counts, hashes and figures, and no text of the training data.
"""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nexus_integrations.data import RetrievalDataset, SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.evaluation import Evaluation
from nexus_integrations.training.result import FinetuneResult

CARD = "README.md"

_LIBRARIES = ("torch", "sentence-transformers", "onnxruntime", "numpy")
_GROWER = "perforatedai"


def model_card(
    encoder: DendriticEncoder,
    *,
    backbone_name: str | None = None,
    training: FinetuneResult | None = None,
    data: Mapping[str, RetrievalDataset | SimilarityDataset] | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
) -> str:
    """Return the Markdown that tells what an encoder is and how it came about.

    `data` maps names, as "train" and "dev", to what was used: counts and hashes are shown, no text.
    `evaluations` maps names, as "before" and "after", to measurements, shown with their intervals.
    What is not given is left out.
    """
    heads = (encoder.query_head, encoder.document_head)
    grown = any(head is not None and head.dendrites for head in heads)
    parts = [
        _front_matter(backbone_name),
        "# Retrieval heads\n\nHeads on the vectors of a frozen sentence encoder, trained with "
        "[nexus-integrations](https://pypi.org/project/nexus-integrations/).\n",
        _what(encoder, backbone_name),
        "## Use\n\n```python\nfrom nexus_integrations import DendriticEncoder\n\n"
        'encoder = DendriticEncoder.load("FOLDER OR NAME")\n'
        'encoder.encode_queries(["a question"])\nencoder.encode_documents(["a passage"])\n```\n\n'
        + _stored(encoder),
    ]
    if data:
        parts.append(
            "## Data\n\nCounts and hashes; no text is in this repository.\n\n" + _data(data)
        )
    if training is not None:
        parts.append("## Recipe\n\n" + _recipe(training))
    if evaluations:
        parts.append("## Evaluation\n\nMean, and its bootstrap interval over questions.\n\n")
        parts[-1] += _figures(evaluations)
    parts.append("## Made with\n\n" + _made_with(grown))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def write_card(folder: str | Path, card: str) -> None:
    """Write a card as the README of a saved encoder's folder."""
    (Path(folder) / CARD).write_text(card, encoding="utf-8")


def _front_matter(backbone_name: str | None) -> str:
    lines = ["---", "library_name: nexus-integrations", "pipeline_tag: feature-extraction"]
    if backbone_name is not None:
        lines.append(f"base_model: {backbone_name}")
    return "\n".join([*lines, "tags: [sentence-similarity, retrieval]", "---"])


def _table(header: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows]) + "\n"


def _what(encoder: DendriticEncoder, backbone_name: str | None) -> str:
    heads = {"query": encoder.query_head, "document": encoder.document_head}
    kinds = [
        f"| {role} head | {'none' if head is None else _kind(head.dendrites)} |"
        for role, head in heads.items()
    ]
    return _table(
        ("what", "value"),
        [
            f"| backbone | {backbone_name or 'in this folder'} |",
            *kinds,
            f"| dimension | {encoder.dimension} |",
            f"| tokens read | {encoder.max_length} |",
            f"| similarity | cosine |\n| fingerprint | `{encoder.fingerprint}` |",
            f"| document fingerprint | `{encoder.document_fingerprint}` |",
        ],
    )


def _kind(dendrites: int) -> str:
    return "linear" if not dendrites else f"{dendrites} dendrite{'s' * (dendrites > 1)}"


def _stored(encoder: DendriticEncoder) -> str:
    if encoder.document_head is None:
        return "The documents' vectors are those of the backbone: its index stays valid.\n"
    return "The head maps the documents' vectors too: embed the documents again.\n"


def _data(data: Mapping[str, RetrievalDataset | SimilarityDataset]) -> str:
    rows = []
    for name, part in data.items():
        if isinstance(part, RetrievalDataset):
            counts = f"{len(part.queries)} questions, {len(part.corpus)} passages"
        else:
            counts = f"{len(part)} sentence pairs"
        rows.append(f"| {name} | {counts} | `{part.digest}` |")
    return _table(("part", "counts", "SHA-256"), rows)


def _recipe(training: FinetuneResult) -> str:
    settings = {k: v for k, v in vars(training.config).items() if v is not None}
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    rows += [
        f"| dev score | {training.metric} |",
        f"| dev score before | {training.baseline_score:.4f} |",
        f"| dev score after | {training.score:.4f} |",
        f"| dev set | {training.dev_source} |",
        f"| epochs run | {len(training.history)} |",
        f"| seconds of training | {training.seconds:.1f} |",
    ]
    if training.gamma is not None:
        rows.append(f"| γ that suits dev best | {training.gamma:g} |")
    return _table(("setting", "value"), rows)


def _figures(evaluations: Mapping[str, Evaluation]) -> str:
    first = next(iter(evaluations.values()))
    rows = []
    for metric in first.metrics:
        cells = []
        for one in evaluations.values():
            low, high = one.intervals[metric]
            cells.append(f"{one.metrics[metric]:.4f} ({low:.4f} to {high:.4f})")
        rows.append(f"| {metric} | {' | '.join(cells)} |")
    rows.append(
        f"| questions | {' | '.join(str(len(e.query_ids)) for e in evaluations.values())} |"
    )
    return _table(("metric", *evaluations), rows)


def _made_with(grown: bool) -> str:
    rows = [f"| nexus-integrations | {_version('nexus-integrations')} |"]
    for name in (*_LIBRARIES, *([_GROWER] if grown else [])):
        if (found := _version(name)) is not None:
            rows.append(f"| {name} | {found} |")
    rows.append(f"| Python | {platform.python_version()} |")
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores"
    rows.append(f"| this card was written on | {machine} |")
    return _table(("library", "version"), rows)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
