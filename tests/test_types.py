"""The protocols are met by what the package brings."""

import numpy as np
import pytest

from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Encoder, Metric, VectorIndex


def test_metric_reads_and_writes_as_its_value():
    """A metric is made from its name and prints as it, in a format string as well."""
    assert Metric("l2") is Metric.L2
    assert str(Metric.COSINE) == f"{Metric.COSINE}" == "cosine"


def test_unknown_metric_is_refused():
    """A metric that no index ranks by has no member."""
    with pytest.raises(ValueError, match="manhattan"):
        Metric("manhattan")


def test_memory_index_meets_the_protocol():
    """MemoryIndex has everything that VectorIndex names."""
    assert isinstance(MemoryIndex(["a"], np.ones((1, 2), np.float32)), VectorIndex)


def test_encoders_meet_the_protocol(toy, table_encoder):
    """Both the toy encoder of these tests and DendriticEncoder have what Encoder names."""
    assert isinstance(toy({"a": (1, 0)}), Encoder)
    assert isinstance(table_encoder({"a": (1, 0)}), Encoder)
