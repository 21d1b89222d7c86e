"""Texts by their number of tokens: cutting them to lengths, and counting a model's operations."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

LENGTHS = (5, 256)  # of the mixed texts, in tokens


def _tokenizer(folder: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTHS[1])
    return tokenizer


def token_counts(texts: Sequence[str], folder: str) -> list[int]:
    """Return the number of tokens of each text."""
    return [len(found.ids) for found in _tokenizer(folder).encode_batch(list(texts))]


def mixed(passages: Sequence[str], folder: str, count: int = 256) -> list[str]:
    """Cut passages to lengths drawn evenly from `LENGTHS`, in no order."""
    rng = random.Random(0)
    tokenizer = _tokenizer(folder)
    texts = []
    for number in range(count):
        text = passages[number % len(passages)]
        tokens = tokenizer.encode(text)
        last = min(rng.randint(*LENGTHS), len(tokens.ids)) - 2  # without the token at the end
        texts.append(text[: tokens.offsets[last][1]])
    rng.shuffle(texts)
    return texts


def operations(texts: Sequence[str], folder: str) -> float:
    """Count the additions and multiplications of a BERT over texts, without padding.

    A layer takes, for each token, 2 · (4 h² + 2 h f) for the linear layers and 4 · n · h for the
    attention, of width h, feed-forward width f, and n tokens in the text.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    wide, inner = config["hidden_size"], config["intermediate_size"]
    lengths = np.array(token_counts(texts, folder), dtype=np.float64)
    linear = lengths.sum() * 2 * (4 * wide**2 + 2 * wide * inner)
    return float(config["num_hidden_layers"] * (linear + 4 * wide * (lengths**2).sum()))
