"""`nexus tune`, `nexus search` and `nexus label`: the whole job, a question, and labels for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nexus_integrations.cli.inputs import check_free, existing, model_name, read_questions
from nexus_integrations.cli.options import DATASET_HELP, AsJson, Dendrites, Force, Model, Seed
from nexus_integrations.cli.output import Output

if TYPE_CHECKING:
    from nexus_integrations.tuning import TuneResult

VECTORS = "vectors.parquet"
"""The vectors in a tuned folder."""


def tune(
    train: Annotated[str, typer.Argument(help=DATASET_HELP)],
    folder: Annotated[Path, typer.Argument(help="The folder to write: all that was tuned.")],
    dev: Annotated[
        str | None, typer.Option(help="More questions to fit and judge with, as data:dev.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Questions that decide nothing, asked before and after.")
    ] = None,
    model: Model = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Document vectors of this model (`nexus embed`); else they are made."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="The language of the words, by default english.")
    ] = None,
    dendrites: Dendrites = 0,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Do the whole job: heads, NUDGE, learned words and the weight; keep what helps."""
    check_free(folder, force=force)

    from nexus_integrations import DendriticEncoder, FinetuneConfig, TuneConfig
    from nexus_integrations import tune as run
    from nexus_integrations.index import FileIndex, MemoryIndex

    questions = read_questions(train, training=True)
    more = None if dev is None else read_questions(dev, training=True)
    asked = None if test is None else read_questions(test)
    encoder = DendriticEncoder.load(model_name(model))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if vectors is None:
        texts = list(questions.corpus.values())
        index = MemoryIndex(list(questions.corpus), encoder.encode_documents(texts))
    else:
        index = MemoryIndex.load(existing(vectors))
    index.save(folder / VECTORS)
    config = TuneConfig(
        heads=FinetuneConfig(dendrites=dendrites, refit=True, seed=seed),
        language=language,
        seed=seed,
    )
    result = run(
        FileIndex(folder / VECTORS), encoder, questions, more, config, state_dir=folder, test=asked
    )
    result.save(folder)
    again = f'Ask it: nexus search {folder} "a question"'
    tests = {name: evaluation.metrics for name, evaluation in result.evaluations.items()}
    content = {**result.record.to_json(), "test": tests, "folder": str(folder)}
    Output(as_json).result(None, str(result), again, **content)


def search(
    folder: Annotated[Path, typer.Argument(help="The folder that `nexus tune` wrote.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Ask a tuned folder, and see for each passage why it was found.

    The score is the similarity of the vectors (cosine) plus the weight times the score of the words
    (BM25), as a share of the best one for this question.
    """
    from nexus_integrations.retrievers import HybridRetriever

    result = opened(folder)
    retriever = result.retriever
    if isinstance(retriever, HybridRetriever):
        found = [
            (match.id, match.score, match.similarity, match.words)
            for match in retriever.matches([question], k)[0]
        ]
    else:
        ids, cosines = retriever.search([question], k)
        found = [(id_, x, x, 0.0) for id_, x in zip(ids[0], cosines[0].tolist(), strict=False)]
    texts = [] if result.lexical is None else result.lexical.texts([row[0] for row in found])
    lines = [f"weight of the words: {result.weight:g}", " score  cosine    BM25  passage"]
    for number, (id_, score, cosine, bm25) in enumerate(found):
        beginning = " ".join(texts[number].split())[:80] if texts else ""
        lines.append(f"{score:6.3f}  {cosine:6.3f}  {bm25:6.2f}  {id_}  {beginning}".rstrip())
    rows = [dict(zip(("id", "score", "cosine", "bm25"), row, strict=True)) for row in found]
    Output(as_json).result(None, *lines, passages=rows, weight=result.weight)


def label(
    questions: Annotated[
        Path,
        typer.Argument(
            help="A table (CSV, Excel, JSONL, Parquet) of questions, each with an answer, a quote, "
            "passage ids, or a file and page."
        ),
    ],
    documents: Annotated[
        Path,
        typer.Argument(
            help="The passages: JSONL, CSV or Parquet with id and text, and source, page, section."
        ),
    ],
    output: Annotated[
        Path, typer.Argument(help="The folder for labels.csv and, from it, data.json.")
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(help="A column of QUESTIONS, as text=Frage or answer=Antwort; repeatable."),
    ] = None,
    similarity: Annotated[
        float, typer.Option(min=0, max=100, help="From where a fuzzy match of an answer counts.")
    ] = 90.0,
    corrected: Annotated[
        Path | None, typer.Option(help="An earlier labels.csv, with passage ids corrected by hand.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the passages that answer a table's questions; list what could not be found."""
    check_free(output, force=force)

    from nexus_integrations.data.labels import match_answers
    from nexus_integrations.data.tables import read_passages, read_questions

    named = dict(part.partition("=")[::2] for part in column or [])
    table = read_questions(existing(questions), named)
    found = match_answers(
        table.questions, read_passages(existing(documents)), similarity=similarity
    )
    if corrected is not None:
        found = found.corrected(existing(corrected))
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    found.save(output / "labels.csv")
    matched = len(found.matches) - len(found.unmatched)
    lines = [str(table), str(found)]
    if matched:
        found.dataset().to_json(output / "data.json")
        lines.append(f"Written to {output}: labels.csv to correct, data.json to train with.")
    Output(as_json).result(
        None,
        *lines,
        questions=len(found.matches),
        matched=matched,
        unmatched={match.question_id: match.note for match in found.unmatched},
    )


def opened(folder: Path) -> "TuneResult":
    """Open what `nexus tune` wrote."""
    from nexus_integrations import TuneResult
    from nexus_integrations.index import FileIndex

    return TuneResult.load(existing(folder), FileIndex(existing(folder / VECTORS)))
