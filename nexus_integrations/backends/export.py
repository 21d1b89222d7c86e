"""Write a backbone as a runtime folder, which ONNX Runtime runs alone."""

import tempfile
from pathlib import Path
from typing import Literal

from nexus_integrations.backends import Backbone, Precision, load_backbone
from nexus_integrations.backends.fastest import fastest
from nexus_integrations.backends.folder import RuntimeModel, copy_runtime, write_runtime
from nexus_integrations.backends.onnx import OnnxBackbone
from nexus_integrations.extras import extra


def export_backbone(backbone: Backbone, folder: Path, precision: Precision | None = None) -> None:
    """Write a backbone into a new folder, or an empty one, that runs without PyTorch.

    `precision` is "float32" or "int8", by default the backbone's own, and "auto" the one that is
    faster here at a negligible loss. Raises `ImportError` where PyTorch, onnx or onnxscript is
    missing, and `ValueError` for a model that cannot be exported, for another precision of an
    exported model, and for bfloat16, which ONNX Runtime has no CPU kernels for.
    """
    if isinstance(backbone, OnnxBackbone):
        if precision in (None, backbone.precision):
            return copy_runtime(backbone.runtime, folder)
        if backbone.folder == backbone.runtime:
            raise ValueError(
                f"{backbone.folder} was exported in {backbone.precision}, and {precision} is not "
                "made of it: export the model that it was made from"
            )
        backbone = load_backbone(backbone.folder, backend="torch", precision="float32")
    chosen = precision or backbone.precision
    if chosen == "bfloat16":
        raise ValueError("ONNX Runtime has no CPU kernels for bfloat16: export float32 or int8")
    if chosen == "auto":
        return _export_fastest(backbone, folder)
    _export_model(backbone, folder, chosen)


def _export_fastest(backbone: Backbone, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="nexus-onnx-") as drafts:
        exact, small = Path(drafts) / "float32", Path(drafts) / "int8"
        _export_model(backbone, exact, "float32")
        ways = [OnnxBackbone.load(exact)]
        try:
            _export_model(backbone, small, "int8")
        except ValueError:  # int8 loses too much
            pass
        else:
            ways.append(OnnxBackbone.load(small))
        copy_runtime(Path(drafts) / fastest(ways).precision, folder)


def _export_model(backbone: Backbone, folder: Path, precision: Literal["float32", "int8"]) -> None:
    with extra("train"):
        from nexus_integrations.backends.graph import export_graph
        from nexus_integrations.backends.torch import TorchBackbone
    if not isinstance(backbone, TorchBackbone):
        raise ValueError(f"a {type(backbone).__name__} holds no model that can be exported")
    if backbone.tokenizer is None:
        raise ValueError(
            "this model is no single transformer with a fast tokenizer, and only such a model can "
            'be exported to ONNX: use backend="torch"'
        )
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = len(backbone.model.tokenizer)
    export_graph(backbone.copied(), folder, vocabulary, backbone.max_length)
    if precision == "int8":
        from nexus_integrations.backends.int8 import quantise_graph
        from nexus_integrations.backends.session import write_probe

        quantise_graph(folder, backbone.tokenizer)
        write_probe(folder, vocabulary)
    write_runtime(
        folder,
        RuntimeModel(
            precision=precision,
            made_from=backbone.float32_digest,
            dimension=backbone.dimension,
            tokenizer=backbone.tokenizer,
        ),
    )
