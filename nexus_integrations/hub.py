"""Handing a tuned encoder on: its model card, and its heads without the backbone.

A card holds counts, hashes and figures, and no text of the training data.
"""

import os
import platform
import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nexus_integrations.data import RetrievalDataset, SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.source import DEFAULT_MODEL, find_model
from nexus_integrations.evaluation import Evaluation
from nexus_integrations.extras import extra
from nexus_integrations.report import TrainingRecord
from nexus_integrations.training.recipe import FinetuneConfig, FinetuneResult

CARD = "README.md"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LIBRARIES = ("torch", "sentence-transformers", "onnxruntime", "numpy")
_GROWER = "perforatedai"


def model_card(
    encoder: DendriticEncoder,
    *,
    backbone_name: str | None = None,
    training: FinetuneResult | TrainingRecord | None = None,
    config: FinetuneConfig | None = None,
    data: Mapping[str, RetrievalDataset | SimilarityDataset] | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
) -> str:
    """Return the Markdown that tells what an encoder is and how it came about.

    `data` maps names, as "train" and "dev", to what was used: counts and hashes are shown, no text.
    `evaluations` maps names, as "before" and "after", to measurements, shown with their intervals.
    What is not given is left out.
    """
    if isinstance(training, FinetuneResult):
        training = TrainingRecord.of(training)
    heads = {"query": encoder.query_head, "document": encoder.document_head}
    kinds = [
        f"| {role} head | {'none' if head is None else _kind(head.dendrites)} |"
        for role, head in heads.items()
    ]
    grown = any(head is not None and head.dendrites for head in heads.values())
    parts = [
        _front_matter(backbone_name),
        "# Retrieval heads\n\nHeads on the vectors of a frozen sentence encoder, trained with "
        "[nexus-integrations](https://pypi.org/project/nexus-integrations/).\n",
        _table(
            ("what", "value"),
            [
                f"| backbone | {backbone_name or 'in this folder'} |",
                *kinds,
                f"| dimension | {encoder.dimension} |",
                f"| word pieces read | {encoder.max_length} |",
                f"| similarity | cosine |\n| fingerprint | `{encoder.fingerprint}` |",
                f"| document fingerprint | `{encoder.document_fingerprint}` |",
            ],
        ),
        "## Use\n\n```python\nfrom nexus_integrations import DendriticEncoder\n\n"
        'encoder = DendriticEncoder.load("FOLDER OR NAME")\n'
        'encoder.encode_queries(["a question"])\nencoder.encode_documents(["a passage"])\n```\n\n'
        + _stored(encoder),
    ]
    if data:
        parts.append(
            "## Data\n\nCounts and hashes; no text is in this repository.\n\n" + _data(data)
        )
    if training is not None or config is not None:
        parts.append("## Recipe\n\n" + _recipe(training, config))
    if evaluations:
        parts.append("## Evaluation\n\nMean, and its bootstrap interval over questions.\n\n")
        parts[-1] += _figures(evaluations)
    parts.append("## Made with\n\n" + _made_with(grown))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def save_to_hub(
    encoder: DendriticEncoder,
    destination: str | Path,
    *,
    backbone_name: str | None = None,
    whole: bool = False,
    card: str | None = None,
    private: bool = True,
    token: str | None = None,
) -> str:
    """Upload a tuned encoder to a repository of the Hugging Face hub, or write it to a folder.

    A string names a repository, "organisation/name", which is made where there is none, `private`
    unless told otherwise; a `Path` is a folder, and nothing is sent anywhere. The heads alone are
    handed on, with the name and digest of their backbone, unless `whole` asks for the backbone's
    weights too. `backbone_name` is found out for all-MiniLM-L6-v2. `card` is the README, by default
    `model_card(encoder)`.

    Returns the address or the folder. Raises `ValueError` when the backbone's name is not known
    or a string could mean a folder,
    `ImportError` without huggingface_hub, and what that raises for the upload.
    """
    name = None if whole else backbone_name or _known_name(encoder)
    if isinstance(destination, Path):
        encoder.save(destination, backbone_name=name)
        write_card(destination, card or model_card(encoder, backbone_name=name))
        return str(destination)
    with extra("train"):
        from huggingface_hub import HfApi
    if not _REPOSITORY.fullmatch(destination) or Path(destination).parent.is_dir():
        raise ValueError(
            f"{destination!r} is no 'organisation/name' of a repository, or may be a folder here: "
            "to write to a folder give a pathlib.Path"
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "encoder", backbone_name=name)
        write_card(Path(folder) / "encoder", card or model_card(encoder, backbone_name=name))
        api.create_repo(destination, private=private, exist_ok=True)
        info = api.upload_folder(
            repo_id=destination,
            folder_path=str(Path(folder) / "encoder"),
            commit_message=f"Encoder {encoder.fingerprint[:12]}",
        )
    return str(info)


def write_card(folder: str | Path, card: str) -> None:
    """Write a card as the README of a saved encoder's folder."""
    (Path(folder) / CARD).write_text(card, encoding="utf-8")


def _known_name(encoder: DendriticEncoder) -> str:
    """Return the backbone's name where it is the default model's; else ask for it."""
    folder = encoder.backbone.folder
    try:
        default = find_model(DEFAULT_MODEL)
    except (FileNotFoundError, ImportError):
        default = None
    if folder is None or default is None or folder.resolve() != default.resolve():
        raise ValueError(
            "heads alone need the name of their backbone: give backbone_name, as in "
            f"backbone_name={DEFAULT_MODEL!r}, or whole=True to hand on its weights as well"
        )
    return DEFAULT_MODEL


def _front_matter(backbone_name: str | None) -> str:
    lines = ["---", "library_name: nexus-integrations", "pipeline_tag: feature-extraction"]
    if backbone_name is not None:
        lines.append(f"base_model: {backbone_name}")
    return "\n".join([*lines, "tags: [sentence-similarity, retrieval]", "---"])


def _table(header: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows]) + "\n"


def _kind(dendrites: int) -> str:
    return "linear" if not dendrites else f"{dendrites} dendrite{'s' * (dendrites > 1)}"


def _stored(encoder: DendriticEncoder) -> str:
    if encoder.document_head is None:
        return "The documents' vectors are those of the backbone: an index of it stays valid.\n"
    return "The documents' vectors are mapped too: an index of the backbone is made anew.\n"


def _data(data: Mapping[str, RetrievalDataset | SimilarityDataset]) -> str:
    rows = []
    for name, part in data.items():
        if isinstance(part, RetrievalDataset):
            counts = f"{len(part.queries)} questions, {len(part.corpus)} passages"
        else:
            counts = f"{len(part)} sentence pairs"
        rows.append(f"| {name} | {counts} | `{part.digest}` |")
    return _table(("part", "counts", "SHA-256"), rows)


def _recipe(training: TrainingRecord | None, config: FinetuneConfig | None) -> str:
    rows = []
    if config is not None:
        rows += [f"| {name} | {value} |" for name, value in vars(config).items()]
    if training is not None:
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
