"""Tables, rows, LangSmith exports, RAG datasets; repeated questions; generated questions."""

import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from llama_index.core.llms import MockLLM

from nexus_integrations.data import (
    RetrievalDataset,
    generate_questions,
    near_duplicates,
    read_langsmith_examples,
    read_rag_dataset,
    read_retriever_runs,
)

ROWS = [
    {"question": "who signs?", "context": "the nurse signs", "id": 7},
    {"question": "who signs?", "context": "the doctor signs too", "id": 8},
    {"question": "where?", "context": "the nurse signs", "id": 7},
]


def make(queries, corpus=None):
    corpus = corpus or {"d": "a passage"}
    return RetrievalDataset(
        queries=queries, corpus=corpus, relevant_docs={id_: [next(iter(corpus))] for id_ in queries}
    )


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Tables.


def write_table(folder, kind):
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parquet.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    lines = [json.dumps(row) for row in ROWS]
    if ".csv" in kind:
        lines = ["question,context,id", *(",".join(map(str, row.values())) for row in ROWS)]
    opened = gzip.open if kind.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet"])
def test_tables_of_every_kind_read_the_same(tmp_path, kind):
    """Three rows are two questions and two passages, whose ids are those of the column."""
    dataset = RetrievalDataset.from_table(write_table(tmp_path, kind), id_column="id")
    assert dataset.queries == {"q0": "who signs?", "q1": "where?"}
    assert dataset.corpus == {"7": "the nurse signs", "8": "the doctor signs too"}
    assert dataset.relevant_docs == {"q0": ["7", "8"], "q1": ["7"]}


def test_rows_of_a_hugging_face_dataset():
    """A `datasets.Dataset` is rows; without an id column passages are numbered."""
    import datasets

    dataset = RetrievalDataset.from_rows(datasets.Dataset.from_list(ROWS))
    assert dataset.relevant_docs == {"q0": ["d0", "d1"], "q1": ["d0"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a"}], "row 0 has no column 'context': it has question"),
        ([ROWS[0], {"context": "a", "id": 1}], "row 1 has no column 'question'"),
        ([ROWS[0], {**ROWS[1], "id": 7}], "row 1: document id '7' stands for two passages"),
    ],
)
def test_rows_name_what_is_wrong(rows, message):
    """Missing columns and ids with two texts, by row."""
    with pytest.raises(ValueError, match=message):
        RetrievalDataset.from_rows(rows, id_column="id" if "id" in rows[0] else None)


def test_other_files_are_refused(tmp_path):
    """A spreadsheet is no table that is read here."""
    with pytest.raises(ValueError, match=r"rows\.xlsx is neither \.jsonl, \.csv"):
        RetrievalDataset.from_table(tmp_path / "rows.xlsx")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b"\xef\xbb\xbfquestion,context\na?,b\n"),
        ("rows.jsonl", b'\xef\xbb\xbf{"question": "a?", "context": "b"}\n\n'),
    ],
)
def test_what_spreadsheets_and_editors_leave(tmp_path, name, content):
    """A byte order mark is no part of the first column's name, a blank line no row."""
    (tmp_path / name).write_bytes(content)
    dataset = RetrievalDataset.from_table(tmp_path / name)
    assert (dataset.queries, dataset.corpus) == ({"q0": "a?"}, {"d0": "b"})


def test_long_passages_of_a_table(tmp_path):
    """A passage of a million characters is read; a quote that is never closed is told."""
    path = tmp_path / "rows.csv"
    path.write_text("question,context\na?," + "x" * 1_000_000 + "\n")
    assert len(RetrievalDataset.from_table(path).corpus["d0"]) == 1_000_000
    path.write_text('question,context\na?,"' + "x" * 2**24 + "\n")
    with pytest.raises(ValueError, match=r"rows\.csv is not valid CSV: field larger than"):
        RetrievalDataset.from_table(path)


# LangSmith and LlamaIndex.


def test_langsmith_examples(tmp_path):
    """Answers are ids, documents, or LangChain's serialised documents, one or several."""
    serialised = {"lc": 1, "type": "constructor", "kwargs": {"page_content": "in room 4"}}
    path = write_lines(
        tmp_path / "examples.jsonl",
        [
            {"inputs": {"question": "who?"}, "outputs": {"documents": "d1"}},
            {
                "inputs": {"question": "where?"},
                "outputs": {"documents": [serialised, {"id": "d1", "page_content": "a nurse"}]},
            },
        ],
    )
    dataset = read_langsmith_examples(path, [Document(id="d1", page_content="a nurse")])
    assert list(dataset.queries.values()) == ["who?", "where?"]
    assert dataset.relevant_docs["q0"] == ["d1"]
    assert [dataset.corpus[id_] for id_ in dataset.relevant_docs["q1"]] == ["in room 4", "a nurse"]
    write_lines(path, [{"inputs": {"q": "who?"}, "outputs": {"documents": "d1"}}])
    with pytest.raises(ValueError, match=r"line 1 of .* lacks inputs\.question or outputs\.docum"):
        read_langsmith_examples(path)


def test_ids_of_exported_documents_are_texts(tmp_path):
    """A number is an id as well, the document's own or that of its metadata."""
    documents = [{"id": 3, "page_content": "a"}, {"metadata": {"id": 4}, "page_content": "b"}]
    row = {"inputs": {"question": "who?"}, "outputs": {"documents": documents}}
    path = write_lines(tmp_path / "examples.jsonl", [row])
    assert read_langsmith_examples(path).corpus == {"3": "a", "4": "b"}


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (
            {"inputs": "who?", "outputs": {"documents": "d"}},
            ValueError,
            "line 1 of .* lacks inputs",
        ),
        ({"inputs": {"question": "a"}, "outputs": []}, ValueError, "line 1 of .* lacks inputs"),
        (
            {"inputs": {"question": "a"}, "outputs": {"documents": {"page_content": None}}},
            TypeError,
            "page_content is a NoneType",
        ),
        (
            {"inputs": {"question": "a"}, "outputs": {"documents": {"text": "b"}}},
            ValueError,
            "neither page_content nor id: text",
        ),
    ],
)
def test_examples_name_what_is_wrong(tmp_path, row, error, message):
    """Inputs and outputs of another form."""
    with pytest.raises(error, match=message):
        read_langsmith_examples(write_lines(tmp_path / "examples.jsonl", [row]))


def test_retriever_runs(tmp_path):
    """Runs of another type and runs that nobody liked are passed over."""

    def run(query, text, kind="retriever", liked=None):
        feedback = {} if liked is None else {"helpful": {"n": 1, "avg": liked}}
        documents = [{"page_content": text}, {"page_content": "second"}]
        return {
            "run_type": kind,
            "inputs": {"query": query},
            "outputs": {"documents": documents},
            "feedback_stats": feedback,
        }

    path = write_lines(
        tmp_path / "runs.jsonl",
        [run("a", "x", liked=1.0), run("b", "y", liked=0.0), run("c", "z"), run("d", "w", "llm")],
    )
    liked = read_retriever_runs(path, feedback="helpful")
    assert (list(liked.queries.values()), list(liked.corpus.values())) == (["a"], ["x"])
    every = read_retriever_runs(path, top=2)
    assert list(every.queries.values()) == ["a", "b", "c"]
    assert "second" in every.corpus.values()
    with pytest.raises(ValueError, match="no retriever run with feedback 'loved' above zero"):
        read_retriever_runs(path, feedback="loved")
    with pytest.raises(ValueError, match="top must be at least 1, not 0"):
        read_retriever_runs(path, top=0)


def test_labelled_rag_datasets(tmp_path):
    """An object and its JSON read the same: contexts of the source nodes answer the query."""
    examples = [{"query": "who?", "reference_contexts": ["a nurse", "a doctor"]}]
    path = tmp_path / "rag.json"
    path.write_text(json.dumps({"examples": examples}))
    made = SimpleNamespace(examples=[SimpleNamespace(**example) for example in examples])
    for dataset in (read_rag_dataset(path), read_rag_dataset(made)):
        assert list(dataset.corpus.values()) == ["a nurse", "a doctor"]
        assert dataset.relevant_docs == {"q0": ["d0", "d1"]}
    for content in ("{}", "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="holds no examples"):
            read_rag_dataset(path)


# Questions that repeat.


def test_near_duplicates_by_hand():
    """{who, signs, the, form} and {who, signs, a, form} share 3 of 5 words: .6."""
    first = make({"a": "Who signs the form?", "b": "where is it"})
    second = make({"x": "who signs a form", "y": "Where is it?", "z": "unrelated"})
    found = near_duplicates(first, second, threshold=0.6)
    assert [(r.first, r.second, round(r.similarity, 6)) for r in found] == [
        ("a", "x", 0.6),
        ("b", "y", 1.0),
    ]
    assert [r.second for r in near_duplicates(first, second)] == ["y"]
    with pytest.raises(ValueError, match="threshold must lie in"):
        near_duplicates(first, second, threshold=0)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.8, 1])
def test_near_duplicates_are_those_of_comparing_all(threshold, monkeypatch):
    """Few questions are compared, in blocks of seven; what is found is what comparing all finds."""
    monkeypatch.setattr("nexus_integrations.data.leakage._ROWS", 7)
    rng = np.random.default_rng(0)

    def some(name):
        texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 7))) for _ in range(40)]
        return make({f"{name}{number}": text for number, text in enumerate(texts)})

    first, second = some("a"), some("b")
    expected = []
    for id_, text in second.queries.items():
        words = set(re.findall(r"\w+", text))
        alike = {
            other: len(words & set(theirs.split())) / len(words | set(theirs.split()))
            for other, theirs in first.queries.items()
        }
        best = max(alike, key=alike.get)
        if alike[best] >= threshold:
            expected.append((best, id_, alike[best]))
    assert near_duplicates(first, second, threshold=threshold) == expected
    assert expected


def test_common_words_cost_nothing():
    """Of 4,000 and 4,000 questions that share their first words no pair is compared."""
    import tracemalloc

    def some(name):
        return make(
            {f"{name}{n}": f"where do i find the form {name}x{n} {name}y{n}" for n in range(4000)}
        )

    first, second = some("a"), some("b")
    tracemalloc.start()
    assert near_duplicates(first, second) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # the 16 million pairs would take a multiple


# Generated questions.

PASSAGES = {
    "d0": "Leave\nA form is signed by the nurse. It is kept.",
    "d1": "Visits end at eight. Then the doors close.",
}


def test_questions_without_a_model():
    """The heading, where there is one, and the first sentence."""
    dataset = generate_questions(PASSAGES)
    asked = {question: dataset.relevant_docs[id_] for id_, question in dataset.queries.items()}
    assert asked == {
        "Leave": ["d0"],
        "A form is signed by the nurse.": ["d0"],
        "Visits end at eight.": ["d1"],
    }


@pytest.mark.parametrize("kind", ["function", "langchain", "llama-index"])
def test_questions_from_a_model(kind):
    """Numbered lines are cleaned, other lines left out, and repeats become one query."""
    answer = "Here you are:\n1. Who signs?\n- who signs\n2) When?\n3) Never asked?"
    llm = {
        "function": lambda prompt: answer,
        "langchain": FakeListChatModel(responses=[answer]),
        "llama-index": SimpleNamespace(complete=lambda prompt: SimpleNamespace(text=answer)),
    }[kind]
    dataset = generate_questions(PASSAGES, llm)
    assert list(dataset.queries.values()) == ["Who signs?", "When?"]
    assert dataset.relevant_docs == {"q0": ["d0", "d1"], "q1": ["d0", "d1"]}


def test_a_real_llama_index_model_is_asked_by_its_interface():
    """MockLLM repeats the prompt, whose lines are no questions: none is left, and that is told."""
    with pytest.raises(ValueError, match="no question came of 2 passages"):
        generate_questions(PASSAGES, MockLLM())


def test_generation_goes_on_where_it_stopped(tmp_path):
    """An error in mid-corpus loses nothing; other passages, or another prompt, are asked anew."""
    path, asked = tmp_path / "questions.jsonl", []

    def llm(prompt):
        asked.append(prompt)
        if len(asked) == 2:
            raise ConnectionError("the model went away")
        return f"What is number {len(asked)}?"

    with pytest.raises(ConnectionError):
        generate_questions(PASSAGES, llm, path=path)
    path.write_text(path.read_text() + '{"passage": "cut o')
    dataset = generate_questions(PASSAGES, llm, path=path)
    assert list(dataset.queries.values()) == ["What is number 1?", "What is number 3?"]
    assert len(asked) == 3
    generate_questions(PASSAGES, llm, path=path)
    assert len(asked) == 3
    generate_questions({"d0": "another corpus, the same id"}, llm, path=path)
    assert len(asked) == 4
    generate_questions(PASSAGES, llm, path=path, count=1)
    assert len(asked) == 6


def test_round_trip_drops_what_does_not_find_its_passage(toy):
    """The question about d1 lies nearer to d0: at depth 1 it is dropped."""
    encoder = toy({"one": (1, 0), "two": (0, 1), "A?": (1, 0.1), "B?": (1, 0.2)})
    passages = {"d0": "one", "d1": "two"}
    answers = {"one": "A?", "two": "B?"}

    def llm(prompt):
        return answers[prompt.splitlines()[-1]]

    kept = generate_questions(passages, llm, encoder=encoder, depth=1)
    assert list(kept.queries.values()) == ["A?"]
    assert len(generate_questions(passages, llm, encoder=encoder, depth=2)) == 2


def test_what_is_no_model_is_refused():
    """A name is no model."""
    with pytest.raises(TypeError, match="llm is a str: expected a LlamaIndex LLM"):
        generate_questions(PASSAGES, "gpt")
