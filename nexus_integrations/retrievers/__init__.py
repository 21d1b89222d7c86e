"""Retrievers: question texts to ranked passages."""

from nexus_integrations.retrievers.dense import DenseRetriever
from nexus_integrations.retrievers.framework import FrameworkRetriever
from nexus_integrations.retrievers.hybrid import HybridRetriever, Match

__all__ = ["DenseRetriever", "FrameworkRetriever", "HybridRetriever", "Match"]
