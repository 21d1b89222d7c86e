"""How a text becomes terms, per language."""

import re
from collections.abc import Sequence
from itertools import pairwise

from nexus_integrations.extras import extra

with extra("lexical"):
    from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Tokenizer


def _words(text: str) -> list[str]:
    return text.split()


# Stop words: the Snowball lists, those of other languages than English as tantivy carries them.
_ENGLISH = _words(
    """
    i me my myself we us our ours ourselves you your yours yourself yourselves he him his himself
    she her hers herself it its itself they them their theirs themselves what which who whom this
    that these those am is are was were be been being have has had having do does did doing would
    should could ought m re s ve ll d t isn aren wasn weren hasn haven hadn doesn don didn won
    wouldn shan shouldn can cannot couldn mustn let here there when where why how a an the and but
    if or because as until while of at by for with about against between into through during before
    after above below to from up down in out on off over under again further then once all any both
    each few more most other some such no nor not only own same so than too very
    """
)
_STOP_WORDS = _words(
    "danish dutch finnish french german hungarian italian norwegian portuguese russian spanish "
    "swedish"
)
_STEMMED = [*_STOP_WORDS, *_words("arabic english greek romanian tamil turkish")]
_WITHOUT_SPACES = _words("burmese chinese japanese khmer korean lao thai")
_MAX_TERM = 255  # bytes; a longer run of letters is data, not a word

LANGUAGES: tuple[str, ...] = tuple(sorted([*_STEMMED, *_WITHOUT_SPACES, "any"]))
"""What `LexicalIndex` takes as its language.

"any" cuts words at spaces and signs and neither stems nor leaves out stop words. Languages written
without spaces are indexed by single characters and pairs of characters.
"""


class Analysis:
    """Texts of one language to terms. Raises `ValueError` for a language that is unknown."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise ValueError(
                f"language {language!r} is unknown: choose one of {', '.join(LANGUAGES)}; 'any' "
                "fits every language that is written with spaces"
            )
        self.language = language
        self.analyzer = _analyzer(language)

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text in order; one that occurs twice counts twice in BM25."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        if self.language in _WITHOUT_SPACES:  # no pairs across signs
            text = re.sub(r"\W+", " ", text)
        return [term for term in self.analyzer.analyze(text) if " " not in term]

    def pairs(self, terms: Sequence[str]) -> list[str]:
        """Return each two terms that follow one another, stop words between them left out."""
        if self.language in _WITHOUT_SPACES:
            return []  # the terms are pairs of characters already
        return [f"{one}_{other}" for one, other in pairwise(terms)]


def _analyzer(language: str) -> TextAnalyzer:
    if language in _WITHOUT_SPACES:
        pairs = TextAnalyzerBuilder(Tokenizer.ngram(1, 2))
        return pairs.filter(Filter.lowercase()).build()
    built = TextAnalyzerBuilder(Tokenizer.simple()).filter(Filter.remove_long(_MAX_TERM))
    built = built.filter(Filter.lowercase())
    if language == "english":
        built = built.filter(Filter.custom_stopword(_ENGLISH))
    elif language in _STOP_WORDS:
        built = built.filter(Filter.stopword(language))
    if language in _STEMMED:
        built = built.filter(Filter.stemmer(language))
    # After stemming, whose rules know the accents: a question often leaves them out.
    return built.filter(Filter.ascii_fold()).build()
