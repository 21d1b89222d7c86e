"""Texts to tokens by the `tokenizers` library, as sentence-transformers makes them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from nexus_integrations.backends import Role

# Characters of a long text that are tokenised at first, for each token that the model reads.
_CHARACTERS = 10

# Characters of a lone text up to which the threads of a batch cost more than they save.
_ALONE = 65_536

# Words at the end of a cut text that more text could change, generously: a word that goes on, a
# contraction, an accent that joins the letter before it, a special token that is cut in two.
_UNSETTLED = 8

# Steps of tokenizers that work from left to right, and never look further ahead than that.
_LOCAL = {
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
    *("Strip", "StripAccents", "Prepend", "BertPreTokenizer", "Whitespace", "WhitespaceSplit"),
    *("Metaspace", "ByteLevel", "Punctuation", "Digits"),
}

# Letters and digits that BERT's normaliser keeps as one character or more, and never splits at.
_LETTERS = "0-9A-Za-zÀ-ÖØ-öø-ɏα-ωА-яЁё"
# Accents and invisible characters, which it drops or keeps as they are.
_DROPPED = "\u0300-\u036f\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\ufeff"


class Tokens(NamedTuple):
    """The ids of each text's tokens, and whether it had more than the model reads."""

    ids: list[list[int]]
    truncated: list[bool]


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A model's tokenizer, its prompts, and how many tokens of a text it reads.

    `definition` is a tokenizer.json; the truncation and padding that it may set are not used.
    `max_length` 0 is no limit.
    """

    definition: str
    prompts: Mapping[Role, str]
    max_length: int

    def tokens(self, texts: Sequence[str], role: Role) -> Tokens:
        """Tokenise texts under the role's prompt, and cut each off at `max_length` tokens.

        Of a long text a beginning is tokenised that settles these tokens: the tokens of a word
        depend on that word alone, and where words end on the characters beside, so that more text
        changes no tokens but those of the last words.
        """
        prompt = self.prompts[role]
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        most = _CHARACTERS * self.max_length if self._cuts else 0
        long = [row for row, text in enumerate(prompted) if 0 < most < len(text)]
        ids: list[list[int]] = [[]] * len(texts)
        beginnings = self._encoded([prompted[row][:most] for row in long], fast=False)
        for row, encoding in zip(long, beginnings, strict=True):
            settled = _settled(encoding) >= self.max_length
            ids[row] = encoding.ids if settled else self._longer(prompted[row], most)
        others = sorted(set(range(len(texts))) - set(long))
        for row, encoding in zip(others, self._encoded([prompted[r] for r in others]), strict=True):
            ids[row] = encoding.ids
        truncated = [0 < self.max_length < len(one) for one in ids]
        return Tokens([self._cut(one) for one in ids], truncated)

    def words(self) -> list[int]:
        """Return the ids of all tokens that are letters or digits, without those that mark."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        return sorted(id_ for token, id_ in vocabulary.items() if token.strip("#▁Ġ").isalnum())

    def settings(self) -> dict[str, Any]:
        """Return all but the definition, as JSON has it."""
        return {"prompts": dict(self.prompts), "max_length": self.max_length}

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _marks(self) -> int:
        """How many special tokens end a text; a text that is cut off keeps them."""
        mask: list[int] = self._tokenizer.encode("a").special_tokens_mask
        return mask[::-1].index(0) if 0 in mask else len(mask)

    def _encoded(self, texts: Sequence[str], fast: bool = True) -> list[Any]:
        """Encode texts; without `fast` an encoding tells which word each token is of."""
        if len(texts) == 1 and len(texts[0]) < _ALONE:  # without the threads of a batch
            return [self._tokenizer.encode(texts[0])]
        encode = self._tokenizer.encode_batch_fast if fast else self._tokenizer.encode_batch
        return list(encode(list(texts)))

    def _cut(self, ids: list[int]) -> list[int]:
        if not 0 < self.max_length < len(ids):
            return ids
        return ids[: self.max_length - self._marks] + ids[len(ids) - self._marks :]

    @cached_property
    def _cuts(self) -> bool:
        """Whether the first tokens of a text follow from its beginning, as far as is known here."""
        definition = json.loads(self.definition)
        steps = [*_steps(definition["normalizer"]), *_steps(definition["pre_tokenizer"])]
        parted = definition["pre_tokenizer"] is not None
        return self.max_length > 0 and parted and all(map(_is_local, steps))

    def _longer(self, text: str, length: int) -> list[int]:
        """Return the ids of a beginning, longer than `length`, that settles what the model reads.

        That is the whole text in the end.
        """
        text = self._without_length(text)
        while length < len(text):
            encoding = self._tokenizer.encode(text[:length])
            if _settled(encoding) >= self.max_length:
                return list(encoding.ids)
            length *= 8
        return list(self._encoded([text])[0].ids)

    def _without_length(self, text: str) -> str:
        """Return a text of the same tokens, for BERT's tokenizer: no endless words and blanks.

        It makes one unknown token of any word that is longer than a limit, and nothing of blanks.
        """
        if (longest := self._longest_word) is None:
            return text
        text = re.sub(rf"([{_LETTERS}]{{{longest + 1}}})[{_LETTERS}]+", r"\1", text)
        text = re.sub(rf"(([{_DROPPED}])\2{{{longest}}})\2+", r"\1", text)
        return re.sub(r"[ \t\n\r]{2,}", " ", text)

    @cached_property
    def _longest_word(self) -> int | None:
        definition = json.loads(self.definition)
        added = [token["content"] for token in definition.get("added_tokens") or ()]
        bert = (
            definition["model"]["type"] == "WordPiece"
            and [step["type"] for step in _steps(definition["normalizer"])] == ["BertNormalizer"]
            and [s["type"] for s in _steps(definition["pre_tokenizer"])] == ["BertPreTokenizer"]
            and not any(content.isalnum() or content.isspace() for content in added)
        )
        return int(definition["model"]["max_input_chars_per_word"]) if bert else None


def plain_definition(definition: str) -> str:
    """Return a tokenizer.json without the truncation and padding that some call left behind."""
    settings = json.loads(definition)
    return json.dumps({**settings, "truncation": None, "padding": None}, ensure_ascii=False)


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a normaliser's or pre-tokenizer's steps, those of sequences one by one."""
    if step is None:
        return []
    inner = step.get("normalizers") or step.get("pretokenizers")
    return [step] if inner is None else [part for one in inner for part in _steps(one)]


def _is_local(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":  # multilingual models replace runs of blanks
        return step["pattern"] == {"Regex": " {2,}"} or "String" in step["pattern"]
    if step["type"] == "Metaspace":
        return bool(step.get("split", True))
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex", True))
    return step["type"] in _LOCAL


def _settled(encoding: Any) -> int:
    """Return how many tokens of a text's beginning more text cannot change."""
    words = [word for word in encoding.word_ids if word is not None]
    return sum(word <= words[-1] - _UNSETTLED for word in words) if words else 0
