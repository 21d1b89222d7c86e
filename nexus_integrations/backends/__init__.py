"""How a backbone runs: text in, unit vectors out."""

from nexus_integrations.backends.torch import TorchBackbone

__all__ = ["TorchBackbone"]
