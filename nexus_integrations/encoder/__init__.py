"""Text to unit vectors: a backbone, and the dendritic heads on its vectors."""

from nexus_integrations.encoder.dendritic import DendriticEncoder, Encoded
from nexus_integrations.encoder.head import DendriticHead

__all__ = ["DendriticEncoder", "DendriticHead", "Encoded"]
