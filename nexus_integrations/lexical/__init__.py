"""Words: passages ranked by BM25, over their own text and the questions that they answered."""

from nexus_integrations.lexical.index import LexicalIndex

__all__ = ["LexicalIndex"]
