"""Which backend runs a folder, and the process's one backbone of each."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from nexus_integrations.backends import Backbone, Backend, Precision, is_runtime_folder
from nexus_integrations.backends.cache import cached_runtime
from nexus_integrations.backends.fastest import fastest_of_model
from nexus_integrations.backends.process import folder_version, shared
from nexus_integrations.extras import extra


def load(
    folder: Path,
    backend: Backend,
    precision: Precision | None,
    device: str,
    num_threads: int | None,
) -> Backbone:
    """See `load_backbone`."""
    for name, value, known in (("backend", backend, Backend), ("precision", precision, Precision)):
        if value not in get_args(known) and value is not None:
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    cpu = device.partition(":")[0] == "cpu"
    if backend == "onnx" and not cpu:
        raise ValueError(f'the backend onnx runs on the CPU: give backend="torch" for {device}')
    if is_runtime_folder(folder):
        return _runtime(folder, backend, precision, cpu, num_threads)
    if backend == "torch" or not cpu:
        run = partial(_torch, folder, device=device, num_threads=num_threads)
        precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    elif backend == "onnx":
        run = partial(_onnx, folder, num_threads=num_threads)
        precisions = ("float32", "int8")
    else:
        run = partial(_chosen, folder, num_threads=num_threads)
        precisions = ("float32", "bfloat16", "int8")
    if precision != "auto":
        return run(precision or "float32")
    return fastest_of_model(folder, device, {name: partial(run, name) for name in precisions})


def _runtime(
    folder: Path, backend: Backend, precision: Precision | None, cpu: bool, num_threads: int | None
) -> Backbone:
    from nexus_integrations.backends.onnx import OnnxBackbone

    if backend == "torch" or not cpu:
        raise ValueError(
            f"{folder} was exported for ONNX Runtime on the CPU and holds no PyTorch model: load "
            "the model that it was exported from"
        )
    backbone = _shared(
        ("runtime", num_threads), folder, lambda: OnnxBackbone.load(folder, num_threads)
    )
    if precision not in (None, "auto", backbone.precision):
        raise ValueError(
            f"{folder} was exported in {backbone.precision} and does not run in {precision}: leave "
            "out `precision`, or export the model again"
        )
    return backbone


def _torch(folder: Path, precision: Precision, device: str, num_threads: int | None) -> Backbone:
    with extra("train"):
        from nexus_integrations.backends.torch import TorchBackbone
    if precision == "int8":
        raise ValueError('int8 runs by ONNX Runtime on the CPU: give backend="onnx" or "auto"')
    exact: Literal["float32", "bfloat16"] = "bfloat16" if precision == "bfloat16" else "float32"
    return _shared(
        ("torch", device, exact, num_threads),
        folder,
        lambda: TorchBackbone.load(folder, device, precision=exact, num_threads=num_threads),
    )


def _onnx(folder: Path, precision: Precision, num_threads: int | None) -> Backbone:
    """Run a model's folder by its graph, which is made on first use and kept in the cache."""
    from nexus_integrations.backends.onnx import OnnxBackbone

    if precision == "bfloat16":
        raise ValueError(
            'ONNX Runtime has no CPU kernels for bfloat16: give backend="torch" or "auto"'
        )
    exact: Literal["float32", "int8"] = "int8" if precision == "int8" else "float32"

    def export(draft: Path) -> None:
        with extra("train"):
            from nexus_integrations.backends.export import export_backbone
            from nexus_integrations.backends.torch import TorchBackbone
        export_backbone(TorchBackbone.load(folder), draft, exact)

    def make() -> Backbone:
        runtime, model, temporary = cached_runtime(folder, exact, export)
        return OnnxBackbone(
            runtime, model, folder=folder, num_threads=num_threads, temporary=temporary
        )

    return _shared(("onnx", exact, num_threads), folder, make)


def _chosen(folder: Path, precision: Precision, num_threads: int | None) -> Backbone:
    """Return what the backend "auto" means for a model's folder on the CPU."""
    if precision == "bfloat16" or (precision != "int8" and find_spec("onnxruntime") is None):
        return _torch(folder, precision, "cpu", num_threads)
    try:
        return _onnx(folder, precision, num_threads)
    except (ImportError, ValueError):
        if precision == "int8":
            raise
        # No exporter, or a model that cannot be exported; a folder without a model fails below.
        return _torch(folder, precision, "cpu", num_threads)


def _shared(way: tuple[object, ...], folder: Path, make: Callable[[], Backbone]) -> Backbone:
    """Return the process's one backbone of what a folder holds now, run in this way.

    A copy in another folder, as a saved encoder has one, is the same backbone.
    """

    def of_digest() -> Backbone:
        new = make()
        return shared((*way, new.digest), lambda: new)

    return shared((*way, folder_version(folder)), of_digest)
