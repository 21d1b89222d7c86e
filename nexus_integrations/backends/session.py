"""Sessions of ONNX Runtime: the one place that imports it, which silences its telemetry first."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from nexus_integrations.backends.folder import GRAPH, PROBE
from nexus_integrations.backends.threads import cores
from nexus_integrations.extras import extra
from nexus_integrations.protocols import Floats, Integers

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

# ONNX Runtime's fused kernel (1.31, x86-64) takes several times as long as the addition and the
# normalisation that it replaces.
_SLOW_FUSIONS = ["SkipLayerNormFusion"]


def import_onnxruntime() -> Any:
    """Import ONNX Runtime so that it sends and stores no telemetry, and return the module.

    From version 1.29 on it posts events to its maker, unless `ORT_DISABLE_TELEMETRY` stands in the
    environment before its first import (`disable_telemetry_events()` does not stop it). A value
    that the user set is kept. Warns once when other code imported it first, without the variable.
    Raises `ImportError` where it is not installed.
    """
    if _NO_TELEMETRY not in os.environ:
        os.environ[_NO_TELEMETRY] = "1"
        if sys.modules.get("onnxruntime") is not None:
            warnings.warn(
                "onnxruntime was imported before nexus_integrations could switch off its "
                f"telemetry, and may send some: set {_NO_TELEMETRY}=1 in the environment before "
                "the program starts",
                UserWarning,
                stacklevel=2,
            )
    with extra("runtime"):
        import onnxruntime
    return onnxruntime


def open_session(graph: Path, num_threads: int | None = None) -> Any:
    """Load a graph, to be run on the CPU by `num_threads` threads, by default one per core."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin within a run answer a lone question sooner; between runs they would take a
    # core from others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # x86-64 CPUs without VNNI add products of unsigned and signed bytes in 16 bits, which
    # overflow. This makes the weights unsigned there: the sums are exact, as with VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        str(graph),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=_SLOW_FUSIONS,
    )


def run_session(session: Any, ids: Integers, mask: Integers) -> Floats:
    """Return the unit vectors, float32 (n, dimension), of ids and mask, int64 (n, length)."""
    vectors: Floats = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return vectors


def write_probe(folder: Path, vocabulary: int) -> None:
    """Write ids below `vocabulary`, and this machine's vectors of them, beside a graph."""
    ids: Integers = np.random.default_rng(0).integers(0, vocabulary, (4, 24))
    vectors = run_session(open_session(folder / GRAPH), ids, np.ones_like(ids))
    save_file({"input_ids": ids, "vectors": vectors}, folder / PROBE)
