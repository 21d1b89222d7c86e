"""Embedding against the classes it replaces: speed, quality, start and memory."""
