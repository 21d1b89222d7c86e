"""Retrievers: question texts to ranked passages."""

from nexus_integrations.retrievers.dense import DenseRetriever

__all__ = ["DenseRetriever"]
