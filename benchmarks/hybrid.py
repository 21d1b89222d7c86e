"""Vectors, words, and both: `python -m benchmarks.hybrid DIR… --output docs/results/hybrid`.

DIR is a BEIR folder with the splits train, dev and test, or a folder with LlamaIndex's
`train_dataset.json[.gz]` and `val_dataset.json[.gz]`, whose `val` asks about other documents than
`train`. The benchmark compares, on the test questions of each set: the model without tuning; BM25;
reciprocal rank fusion of both with equal weights, as LlamaIndex and LangChain offer it; tuned
vectors (a linear query head, then NUDGE-N); the words of `LexicalIndex`, without and with the
questions of train and dev; and `tune`, which fits vectors, words and the weight between them.
Everything is chosen on train and dev.

The benchmark needs bm25s and PyStemmer. It appends rows to OUTPUT.jsonl, measures no recorded run
again, and writes OUTPUT.md and OUTPUT.svg from all rows.
"""

import argparse
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

from benchmarks.bm25 import PlainBM25
from benchmarks.corpora import Corpus, mapped, remembering_encoder
from benchmarks.fusion import RankFusion
from benchmarks.hybrid_page import (
    BM25,
    FUSIONS,
    LEARNED,
    MODEL,
    OWN,
    SYSTEMS,
    TUNED,
    VECTORS,
    draw,
    page,
)
from benchmarks.record import Row, file_of, read_rows, write_page
from benchmarks.runs import Bench, figures
from nexus_integrations import (
    FinetuneConfig,
    HybridRetriever,
    LexicalIndex,
    TuneConfig,
    evaluate,
    tune,
)
from nexus_integrations.protocols import Retriever
from nexus_integrations.retrievers import DenseRetriever

DEPTH = 100  # passages that each side gives to the fusion
_LANGUAGES = [["xquad_es", "spanish"]]


@dataclass
class HybridBench(Bench):
    """A corpus, its indexes of vectors and words, and the file of rows."""

    language: str = "english"

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The words of the test questions' documents."""
        return self.words(self.corpus.test.corpus)

    @cached_property
    def plain(self) -> PlainBM25:
        """The same words as others index them."""
        return PlainBM25(self.corpus.test.corpus, self.language)

    def words(self, corpus: dict[str, str]) -> LexicalIndex:
        """Return an index of the words of passages, in memory."""
        index = LexicalIndex(language=self.language)
        index.fill(corpus)
        return index

    def learned_words(self) -> LexicalIndex:
        """Return the words of the passages and of the train and dev questions that they answer."""
        index = self.words(self.corpus.test.corpus)
        for part in (self.corpus.train, self.corpus.dev):
            index.learn(part.queries, part.relevant_docs)
        return index

    def run(self, system: str, seed: int | None) -> Row:
        """Return the row of a system: of the peers and of words there is one for all seeds."""
        if system == VECTORS:
            return self.finetuned(system, _heads(seed))
        if system == TUNED:
            config = self._config(seed)
            settings = {**asdict(config), "weights": list(map(str, config.weights))}
            return self.once(system, settings, lambda: self._tuned(config))
        settings = {"system": system, "language": self.language}
        if system in FUSIONS:
            settings["depth"] = DEPTH
        return self.once(system, settings, lambda: self._judged(system))

    def _config(self, seed: int | None) -> TuneConfig:
        # Questions about other documents are to come: judge by documents that were not asked about.
        by = "document" if self.corpus.unseen else "query"
        return TuneConfig(heads=_heads(seed), language=self.language, split_by=by, seed=seed or 0)

    def _tuned(self, config: TuneConfig) -> Row:
        corpus, index = self.corpus, mapped(self.index, self.encoder)
        words = self.words(corpus.train.corpus)
        result = tune(index, self.encoder, corpus.train, corpus.dev, config, lexical=words)
        retriever: Retriever = result.retriever
        if corpus.unseen:  # the same encoder and weight over the other documents
            retriever = HybridRetriever(
                self.test_index, result.encoder, self.lexical, weight=result.weight
            )
        return {
            "seconds": round(result.record.seconds, 2),
            "nudge_seconds": 0.0,
            "weight": str(result.weight),
            "gamma": result.record.gamma,
            "kept": [stage.name for stage in result.stages if stage.kept],
            "stages": [str(stage) for stage in result.stages],
            **figures({TUNED: evaluate(retriever, corpus.test)}),
        }

    def _judged(self, system: str) -> Row:
        dense = DenseRetriever(self.test_index, self.encoder)  # embeds before the clock starts
        begun = perf_counter()
        retriever = self._retriever(system, dense)
        seconds = perf_counter() - begun
        return {
            "seconds": round(seconds, 2),
            "nudge_seconds": 0.0,
            **figures({system: evaluate(retriever, self.corpus.test)}),
        }

    def _retriever(self, system: str, dense: DenseRetriever) -> Retriever:
        if system == MODEL:
            return dense
        if system == BM25:
            return self.plain
        if system in FUSIONS:
            return RankFusion([dense, self.plain], FUSIONS[system], DEPTH)
        if system == OWN:
            return self.lexical
        assert system == LEARNED
        return self.learned_words()


def _heads(seed: int | None) -> FinetuneConfig:
    return FinetuneConfig(dendrites=0, refit=True, seed=seed or 0)


def main() -> None:
    """Run what the command line asks for and write the page and the picture."""
    options = _options()
    path = file_of(options.output, ".jsonl")
    languages = dict(options.language)
    encoder = remembering_encoder(options.model, options.vectors) if options.folders else None
    for folder in options.folders:
        assert encoder is not None
        language = languages.get(folder.name, "english")
        bench = HybridBench(Corpus.read(folder), encoder, path, language=language)
        for system, seeds in SYSTEMS.items():
            if system not in options.systems or (system == LEARNED and bench.corpus.unseen):
                continue  # words learn only of passages that questions are about
            for seed in options.seeds if seeds else [None]:
                bench.run(system, seed)
    rows = read_rows(path)
    draw(rows, file_of(options.output, ".svg"))
    write_page(options.output, page(rows, options.output.name))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--language",
        nargs=2,
        action="append",
        default=_LANGUAGES,
        metavar=("SET", "LANGUAGE"),
        help="the language of a set that is not English",
    )
    parser.add_argument("--model", help="folder or hub name; by default all-MiniLM-L6-v2")
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/hybrid"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
