"""Long texts: a beginning is tokenised, with the tokens and the count of the whole text."""

import random
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from nexus_integrations.backends import tokens as tokens_module
from nexus_integrations.backends.tokens import TextTokenizer

MAX_LENGTH = 24
LEARNT = [
    "who signs the form and when it's sent",
    "naïve Ærøskøbing ﬁne Ⅳ 病院",
    "we'll we'd re-read",
]


def trained(kind: str) -> Tokenizer:
    """A small tokenizer of a family that sentence encoders have."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    elif kind == "byte pairs":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    tokenizer.train_from_iterator(LEARNT * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def of(tokenizer: Tokenizer, prompt: str = "") -> TextTokenizer:
    prompts = {"query": prompt, "document": ""}
    return TextTokenizer(definition=tokenizer.to_str(), prompts=prompts, max_length=MAX_LENGTH)


PARTS = [
    *(
        "who signs",
        "the form",
        " ",
        "   ",
        "\n\n",
        "\t",
        "it's",
        "we'll",
        "'",
        "--",
        "[MASK]",
        "[CL",
    ),
    *(
        "病院",
        "한국어",
        "e\u0301",
        "\u0301",
        "\u0301" * 40,
        "\u200b",
        "\u0000",
        "ﬁ",
        "😀",
        "👩‍⚕️",
        "Ⅳ",
    ),
    *(
        "x" * 29,
        "x" * 30,
        "x" * 31,
        "y" * 300,
        "я" * 200,
        "é" * 200,
        " " * 300,
        "Σ",
        "İ",
        "9" * 200,
    ),
]


@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("kind", ["bert", "byte pairs", "unigram"])
def test_a_beginning_gives_the_tokens_of_the_whole_text(kind, prompt):
    """As the library's own truncation gives them, for 400 texts of parts that meet in all ways."""
    tokenizer = trained(kind)
    ours = of(tokenizer, prompt)
    rng = random.Random(0)
    texts = ["".join(rng.choices(PARTS, k=rng.randint(1, 60))) for _ in range(400)]
    texts += [part * 500 for part in PARTS]
    found = ours.tokens(texts, "query")
    counts = [len(tokenizer.encode(prompt + text)) for text in texts]
    assert found.truncated == [count > MAX_LENGTH for count in counts]
    tokenizer.enable_truncation(MAX_LENGTH)
    assert found.ids == [tokenizer.encode(prompt + text).ids for text in texts]
    assert sum(len(text) > tokens_module._CHARACTERS * MAX_LENGTH for text in texts) > 100


@pytest.mark.parametrize("kind", ["bert", "byte pairs", "unigram"])
def test_no_more_of_a_long_text_is_tokenised_than_needed(kind, monkeypatch):
    """Of a million words the first few hundred characters."""
    ours = of(trained(kind))
    given, encoded = [], TextTokenizer._encoded

    def watched(self, texts, fast=True):
        given.extend(map(len, texts))
        return encoded(self, texts, fast)

    monkeypatch.setattr(TextTokenizer, "_encoded", watched)
    ids, truncated = ours.tokens(["who signs " * 1_000_000, "the form"], "query")
    assert (len(ids[0]), truncated) == (MAX_LENGTH, [True, False])
    assert max(given) == tokens_module._CHARACTERS * MAX_LENGTH


@pytest.mark.parametrize("sign", ["a", "я", "7", " ", "\n", "\u0301", "\u200b"])
def test_bert_reads_an_endless_word_as_a_short_one(sign, monkeypatch):
    """Ten million equal signs make one unknown token or none, and the words after them count."""
    ours = of(trained("bert"))
    given, encode = [], TextTokenizer._encoded

    def watched(self, texts, fast=True):
        given.extend(map(len, texts))
        return encode(self, texts, fast)

    monkeypatch.setattr(TextTokenizer, "_encoded", watched)
    long = ours.tokens([f"who {sign * 10_000_000} signs"], "query")
    assert long == ours.tokens([f"who {sign * 200} signs"], "query")
    assert max(given) < 1000


def test_a_tokenizer_whose_words_have_no_end_reads_the_whole_text():
    """Without a step that parts words every token may hang on what follows."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    tokenizer.train_from_iterator(LEARNT, trainer)
    text = "who signs the form " * 200
    found = of(tokenizer).tokens([text], "document")
    assert found.ids == [tokenizer.encode(text).ids[:MAX_LENGTH]]
    assert found.truncated == [True]


@pytest.mark.model
def test_the_real_tokenizer_of_ten_megabytes():
    """all-MiniLM-L6-v2: the tokens of a text of 10 MB are those of its first 4,000 characters."""
    from nexus_integrations.encoder.source import find_model

    definition = Path(find_model("all-MiniLM-L6-v2"), "tokenizer.json").read_text(encoding="utf-8")
    ours = TextTokenizer(
        definition=definition, prompts={"query": "", "document": ""}, max_length=256
    )
    text = "Who signs Form K-12, and when? " * 340_000
    theirs = Tokenizer.from_str(definition)
    theirs.enable_truncation(256)
    assert ours.tokens([text], "query") == ([theirs.encode(text[:4000]).ids], [True])
