"""Texts to word pieces by the `tokenizers` library, as sentence-transformers makes them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from nexus_integrations.backends import Role

_COUNTED = 2048  # texts whose pieces are held at a time while they are counted


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A model's tokenizer, its prompts, and how many word pieces of a text it reads.

    `definition` is a tokenizer.json; the truncation and padding that it may set are not used.
    `max_length` 0 is no limit.
    """

    definition: str
    prompts: Mapping[Role, str]
    max_length: int

    @cached_property
    def _whole(self) -> Any:
        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _cut(self) -> Any:
        if not self.max_length:
            return self._whole
        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length)
        return tokenizer

    def pieces(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Return the ids of each text's word pieces, under the role's prompt, cut off."""
        prompt = self.prompts[role]
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        if len(prompted) == 1:  # without the threads of a batch
            return [self._cut.encode(prompted[0]).ids]
        return [encoding.ids for encoding in self._cut.encode_batch_fast(prompted)]

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Return how many texts, without a prompt, are longer than `max_length` word pieces."""
        if not self.max_length:
            return 0
        long = [text for text in texts if _most_pieces(text) > self.max_length]
        count = 0
        for start in range(0, len(long), _COUNTED):
            encodings = self._whole.encode_batch_fast(long[start : start + _COUNTED])
            count += sum(len(encoding) > self.max_length for encoding in encodings)
        return count

    def words(self) -> list[int]:
        """Return the ids of all pieces that are letters or digits, without those that mark."""
        vocabulary: dict[str, int] = self._whole.get_vocab(with_added_tokens=False)
        return sorted(id_ for piece, id_ in vocabulary.items() if piece.strip("#▁Ġ").isalnum())

    def settings(self) -> dict[str, Any]:
        """Return all but the definition, as JSON has it."""
        return {
            "prompts": dict(self.prompts),
            "max_length": self.max_length,
        }


def plain_definition(definition: str) -> str:
    """Return a tokenizer.json without the truncation and padding that some call left behind."""
    settings = json.loads(definition)
    return json.dumps({**settings, "truncation": None, "padding": None}, ensure_ascii=False)


def _most_pieces(text: str) -> int:
    # Every ASCII character makes at most a piece, and a word one more for its beginning; others
    # make few (a Hangul syllable three). Short texts need no counting.
    return (2 if text.isascii() else 4) * len(text) + 2
