"""Reading, checking, splitting and writing datasets."""

import gzip
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from nexus_integrations.data import RetrievalDataset, SimilarityDataset, check_texts

QUERIES = {"q1": "who signs?", "q2": "where is it?"}
CORPUS = {"d1": "the head nurse signs", "d2": "in room 4", "d3": "nobody asks for this"}
RELEVANT = {"q1": ["d1"], "q2": ["d2", "d1"]}


def make_dataset(**parts) -> RetrievalDataset:
    return RetrievalDataset(
        **{"queries": QUERIES, "corpus": CORPUS, "relevant_docs": RELEVANT, **parts}
    )


def content_of(dataset: RetrievalDataset) -> tuple[dict, dict, dict]:
    return dataset.queries, dataset.corpus, dataset.relevant_docs


# Construction.


def test_dataset_keeps_the_whole_corpus():
    """Two queries, three documents of which one answers nothing, three judgements."""
    dataset = make_dataset()
    assert content_of(dataset) == (QUERIES, CORPUS, RELEVANT)
    assert (len(dataset), dataset.dropped) == (2, 0)


def test_queries_without_relevant_documents_are_dropped_and_counted():
    """One query has an empty list, one is not named at all: both go."""
    dataset = make_dataset(
        queries={**QUERIES, "q3": "empty list", "q4": "not named"},
        relevant_docs={**RELEVANT, "q3": []},
    )
    assert dataset.dropped == 2
    assert content_of(dataset) == (QUERIES, CORPUS, RELEVANT)


def test_a_document_listed_twice_counts_once():
    """[d1, d2, d1] is [d1, d2]."""
    assert make_dataset(relevant_docs={"q1": ["d1", "d2", "d1"]}).relevant_docs == {
        "q1": ["d1", "d2"]
    }


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"relevant_docs": {}}, ValueError, "empty: no query has a relevant document"),
        ({"queries": {}, "relevant_docs": {}}, ValueError, "is empty"),
        ({"relevant_docs": {"q1": ["d9"]}}, ValueError, "'q1' names document 'd9', which is not"),
        ({"relevant_docs": {"q9": ["d1"]}}, ValueError, "names query 'q9', which is not"),
        ({"relevant_docs": {"q1": "d1"}}, TypeError, r"\['q1'\] is str: expected a li"),
        ({"relevant_docs": {"q1": None}}, TypeError, r"q1.*NoneType"),
        ({"relevant_docs": {"q1": [["d1"]]}}, ValueError, r"'q1' names document \['d1'\], which"),
        ({"relevant_docs": []}, TypeError, "relevant_docs is a list: expected a dictionary"),
        ({"queries": ["a"]}, TypeError, "the query texts are a list: expected a dictionary of id"),
        ({"queries": {"q1": None, "q2": "b"}}, TypeError, "query 'q1' is NoneType"),
        ({"queries": {"q1": ["a"], "q2": "b"}}, TypeError, "query 'q1' is list"),
        ({"queries": {1: "a"}}, TypeError, "query id 1 is int"),
        ({"queries": {"q1": "  \n", "q2": "b"}}, ValueError, "query 'q1' is blank"),
        ({"corpus": {**CORPUS, "d3": ""}}, ValueError, "document 'd3' is blank"),
        ({"corpus": {**CORPUS, "d3": None}}, TypeError, "document 'd3' is NoneType"),
        ({"corpus": {**CORPUS, "d3": b"x"}}, TypeError, "document 'd3' is bytes"),
    ],
)
def test_what_is_wrong_is_named(parts, error, message):
    """Each error names the item, so that it can be found among thousands."""
    with pytest.raises(error, match=message):
        make_dataset(**parts)


def test_repr_holds_counts_and_no_text():
    """A repr ends up in logs, where no text belongs."""
    assert repr(make_dataset()) == (
        "RetrievalDataset(2 queries, 3 documents, 3 relevance judgements)"
    )
    assert "nurse" not in f"{SimilarityDataset(sentences1=['nurse'], sentences2=['b'], scores=[1])}"


def test_check_texts_names_the_item():
    """A bare string is one mistake, an item that is not text another."""
    check_texts(["a", ""])
    with pytest.raises(TypeError, match="got one string"):
        check_texts("a text")
    with pytest.raises(TypeError, match="text 1 is NoneType, expected str"):
        check_texts(["a", None])


# Readers.


def write_beir(folder, *, compress=False, corpus=None, queries=None, qrels=None):
    def write(name, rows):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if compress:
            with gzip.open(folder / f"{name}.gz", "wt", encoding="utf-8") as file:
                file.write(text)
        else:
            (folder / name).write_text(text, encoding="utf-8")

    write(
        "corpus.jsonl",
        corpus
        or [
            {"_id": "d1", "title": "Forms", "text": "the head nurse signs"},
            {"_id": "d2", "title": "", "text": "in room 4"},
            {"_id": "d3", "text": "nobody asks for this"},
        ],
    )
    write("queries.jsonl", queries or [{"_id": id_, "text": t} for id_, t in QUERIES.items()])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(
        qrels or "query-id\tcorpus-id\tscore\nq2\td2\t1\nq2\td3\t0\nq2\td1\t2\nq2\td3\t-1\n"
    )
    return folder


@pytest.mark.parametrize(
    ("split", "message"), [(None, "name a split"), ("tset", "there is no split 'tset'")]
)
def test_a_split_is_never_guessed(tmp_path, split, message):
    """Without a split, or with one misspelt, the error lists those that there are."""
    with pytest.raises(ValueError, match=rf"{message}: .* has test in qrels/"):
        RetrievalDataset.from_beir(write_beir(tmp_path), split=split)


@pytest.mark.parametrize("compress", [False, True])
def test_from_beir(tmp_path, compress):
    """Titles stand before texts, only the split's queries stay, scores of 0 and −1 count not."""
    dataset = RetrievalDataset.from_beir(write_beir(tmp_path, compress=compress), split="test")
    assert dataset.corpus == {**CORPUS, "d1": "Forms the head nurse signs"}
    assert dataset.queries == {"q2": "where is it?"}
    assert dataset.relevant_docs == {"q2": ["d2", "d1"]}


def test_from_beir_counts_queries_judged_irrelevant_alone(tmp_path):
    """A query whose one judgement is 0 is dropped, and counted."""
    qrels = "query-id\tcorpus-id\tscore\nq1\td1\t0\nq2\td2\t1\n"
    dataset = RetrievalDataset.from_beir(write_beir(tmp_path, qrels=qrels), split="test")
    assert (list(dataset.queries), dataset.dropped) == (["q2"], 1)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (
            {"corpus": [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}]},
            ValueError,
            r"line 2 of .*corpus.jsonl: id 'd1' occurs twice",
        ),
        ({"corpus": [{"_id": "d1"}]}, ValueError, "line 1 of .* lacks _id or text"),
        ({"queries": [["q1", "a"]]}, ValueError, "line 1 of .*queries.jsonl lacks _id"),
        ({"corpus": [{"_id": "d1", "text": None}]}, TypeError, "'d1' is NoneType"),
        ({"corpus": [{"_id": "d1", "text": " "}]}, ValueError, "'d1' is blank"),
        ({"queries": [{"_id": "q2", "text": None}]}, TypeError, "query 'q2' is NoneType"),
        (
            {"qrels": "query-id\tcorpus-id\tscore\nq9\td1\t1\n"},
            ValueError,
            r"test.tsv names query 'q9', unknown",
        ),
        (
            {"qrels": "q2\td2\t1\n"},
            ValueError,
            r"test.tsv has 3 columns in its first line: expected query-id, corpus-id, sc",
        ),
        (
            {"qrels": "query-id\tcorpus-id\tscore\nq2\td2\tgood\n"},
            ValueError,
            r"line 2 of .*test.tsv has a score that is no number",
        ),
    ],
)
def test_from_beir_names_what_is_wrong(tmp_path, parts, error, message):
    """Duplicate ids, missing fields, missing texts and unknown queries are named."""
    with pytest.raises(error, match=message):
        RetrievalDataset.from_beir(write_beir(tmp_path, **parts), split="test")


def test_from_beir_takes_a_title_alone(tmp_path):
    """A document with a title and an empty text is its title."""
    corpus = [{"_id": f"d{n}", "title": "Alone", "text": ""} for n in (1, 2, 3)]
    dataset = RetrievalDataset.from_beir(write_beir(tmp_path, corpus=corpus), split="test")
    assert dataset.corpus["d1"] == "Alone"


def test_from_beir_names_a_broken_line(tmp_path):
    """A line that is no JSON is named by file and number."""
    write_beir(tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ValueError, match=r"line 4 of .*corpus.jsonl is not valid JSON"):
        RetrievalDataset.from_beir(tmp_path, split="test")


def test_json_round_trip(tmp_path):
    """What to_json writes, from_json reads back, with letters beyond ASCII and a mode."""
    dataset = make_dataset(queries={**QUERIES, "q1": "wer hält die Schlüssel? 鍵"})
    dataset.to_json(tmp_path / "data.json")
    assert content_of(RetrievalDataset.from_json(tmp_path / "data.json")) == content_of(dataset)
    assert json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))["mode"] == "text"


def test_from_json_reads_gzip(tmp_path):
    """The same JSON under gzip reads the same."""
    content = {"queries": QUERIES, "corpus": CORPUS, "relevant_docs": RELEVANT}
    with gzip.open(tmp_path / "data.json.gz", "wt") as file:
        json.dump(content, file)
    dataset = RetrievalDataset.from_json(tmp_path / "data.json.gz")
    assert content_of(dataset) == content_of(make_dataset())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"queries": {}, "corpus": {}}', "lacks relevant_docs: not a retrieval dataset"),
        ("[]", "lacks corpus, queries, relevant_docs"),
        ('[{"query": "a"}]', "lacks corpus, queries, relevant_docs"),
        ('{"queries": {"q": "a"', "is not valid JSON"),
        ('{"queries": {"q": "a", "q": "b"}, "corpus": {}, "relevant_docs": {}}', "'q' occurs twic"),
        (
            '{"queries": {"q": "a"}, "corpus": {"d": "a", "d": "a"}, "relevant_docs": {}}',
            "'d' occurs twice",
        ),
    ],
)
def test_from_json_names_what_is_wrong(tmp_path, text, message):
    """Missing parts, broken JSON, and keys of which json would silently keep the last."""
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RetrievalDataset.from_json(tmp_path / "data.json")


def test_from_llama_index_takes_any_object_with_three_dictionaries():
    """Only queries, corpus and relevant_docs are read."""
    source = SimpleNamespace(queries=QUERIES, corpus=CORPUS, relevant_docs=RELEVANT, mode="text")
    assert content_of(RetrievalDataset.from_llama_index(source)) == content_of(make_dataset())


def test_from_llama_index_does_not_take_a_string_apart():
    """The string "12" in place of a list is no list of the documents "1" and "2"."""
    source = SimpleNamespace(
        queries={"q": "a"}, corpus={"1": "a", "2": "b"}, relevant_docs={"q": "12"}
    )
    with pytest.raises(TypeError, match="expected a list of ids"):
        RetrievalDataset.from_llama_index(source)


class TestFromLangchain:
    """Pairs of a question and `Document`s, ids, or lists of them."""

    @pytest.fixture
    def document(self):
        return pytest.importorskip("langchain_core.documents").Document

    def test_documents_ids_and_lists(self, document):
        """Documents join the corpus, ids refer to it, equal questions are one query."""
        rest = document(page_content="in room 4", id="d2")
        signs = document(page_content="the head nurse signs", id="d1")
        dataset = RetrievalDataset.from_langchain(
            [("who signs?", signs), ("where is it?", ["d2", signs]), ("who signs?", "d2")], [rest]
        )
        assert dataset.queries == {"q0": "who signs?", "q1": "where is it?"}
        assert dataset.corpus == {"d2": "in room 4", "d1": "the head nurse signs"}
        assert dataset.relevant_docs == {"q0": ["d1", "d2"], "q1": ["d2", "d1"]}

    def test_content_hashes_serve_as_ids(self, document):
        """Two documents without an id and with one content are one document; no id tells it."""
        pairs = [("a?", document(page_content="same")), ("b?", document(page_content="same"))]
        dataset = RetrievalDataset.from_langchain(pairs)
        id_ = f"sha256-{hashlib.sha256(b'same').hexdigest()}"
        assert dataset.corpus == {id_: "same"}
        assert dataset.relevant_docs == {"q0": [id_], "q1": [id_]}

    def test_one_id_with_two_contents_is_refused(self, document):
        """An id names one document."""
        documents = [document(page_content=text, id="d1") for text in ("a", "b")]
        with pytest.raises(ValueError, match="different contents have the id 'd1'"):
            RetrievalDataset.from_langchain([("a?", "d1")], documents)

    def test_unknown_id_is_named(self, document):
        """An id that no document has is not in the corpus."""
        with pytest.raises(ValueError, match="'d7', which is not in the corpus"):
            RetrievalDataset.from_langchain([("a?", "d7")], [document(page_content="a", id="d1")])


class TestFromHub:
    """Rows read by `datasets`, here from local folders."""

    @pytest.fixture(autouse=True)
    def private_cache(self, tmp_path, monkeypatch, no_network):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    @pytest.fixture
    def write(self, tmp_path):
        import datasets

        def write_rows(form, rows):
            folder = tmp_path / form
            folder.mkdir()
            data = datasets.Dataset.from_list(rows)
            getattr(data, f"to_{form}")(str(folder / f"train.{form}"))
            return str(folder)

        return write_rows

    @pytest.mark.parametrize("form", ["parquet", "csv"])
    def test_equal_texts_become_one(self, write, form):
        """Three rows of two questions and two passages."""
        rows = [
            {"question": "who?", "context": "the nurse"},
            {"question": "where?", "context": "the nurse"},
            {"question": "who?", "context": "room 4"},
        ]
        dataset = RetrievalDataset.from_hub(write(form, rows))
        assert dataset.queries == {"q0": "who?", "q1": "where?"}
        assert dataset.corpus == {"d0": "the nurse", "d1": "room 4"}
        assert dataset.relevant_docs == {"q0": ["d0", "d1"], "q1": ["d0"]}

    def test_columns_are_chosen_and_missing_ones_named(self, write):
        """Other columns are read when they are named; a missing one is answered with all."""
        folder = write("parquet", [{"ask": "who?", "passage": "the nurse"}])
        dataset = RetrievalDataset.from_hub(folder, query_column="ask", document_column="passage")
        assert dataset.corpus == {"d0": "the nurse"}
        with pytest.raises(ValueError, match="no column 'question': it has ask, passage"):
            RetrievalDataset.from_hub(folder)

    def test_missing_values_are_named(self, write):
        """A row without a passage is an error, no document "None"."""
        rows = [{"question": "a?", "context": "x"}, {"question": "b?", "context": None}]
        with pytest.raises(TypeError, match="document 'd1' is NoneType"):
            RetrievalDataset.from_hub(write("parquet", rows))

    @pytest.mark.parametrize("form", ["arrow", "parquet"])
    def test_records_questions_and_relevance(self, tmp_path, form):
        """The layout of `sepz/scifact_ft`: numbers become ids, irrelevant pairs are none."""
        import datasets

        parts = {
            "data_records": {
                "train": [{"record_id": 7, "text": "the nurse"}, {"record_id": 8, "text": "room 4"}]
            },
            "qs": {
                "train": [{"q_id": 0, "input": "who?"}],
                "dev": [{"q_id": 0, "input": "where?"}, {"q_id": 1, "input": "why?"}],
            },
            "qs_rel": {
                "train": [{"q_id": 0, "record_id": 7, "rel": 1}],
                "dev": [
                    {"q_id": 0, "record_id": 8, "rel": 1},
                    {"q_id": 0, "record_id": 7, "rel": 0},
                ],
            },
        }
        for part, splits in parts.items():
            tables = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
            if form == "arrow":
                datasets.DatasetDict(tables).save_to_disk(str(tmp_path / part))
            else:
                (tmp_path / part).mkdir()
                for split, table in tables.items():
                    table.to_parquet(str(tmp_path / part / f"{split}.parquet"))
        dataset = RetrievalDataset.from_hub_records(str(tmp_path), split="dev")
        assert dataset.queries == {"0": "where?"}
        assert dataset.corpus == {"7": "the nurse", "8": "room 4"}
        assert dataset.relevant_docs == {"0": ["8"]}
        assert dataset.dropped == 1
        train = RetrievalDataset.from_hub_records(str(tmp_path))
        assert train.relevant_docs == {"0": ["7"]}

    def test_similarity_pairs(self, write):
        """Scores 0, 2.5 and 5 of 0…5 are 0, ½ and 1."""
        rows = [
            {"sentence1": f"a{n}", "sentence2": f"b{n}", "score": 2.5 * n, "extra": n}
            for n in range(3)
        ]
        folder = write("parquet", rows)
        dataset = SimilarityDataset.from_hub(folder)
        assert (dataset.sentences1, dataset.sentences2) == (["a0", "a1", "a2"], ["b0", "b1", "b2"])
        np.testing.assert_array_equal(dataset.scores, [0, 0.5, 1])
        with pytest.raises(ValueError, match="no column 'left': sentence1, sentence2, score"):
            SimilarityDataset.from_hub(folder, columns=("left", "sentence2", "score"))


# Splitting.


def chain(n: int) -> RetrievalDataset:
    """Query i is answered by documents i and i + 1 within its triple: three queries a group."""
    relevant = {}
    for group in range(n):
        for i in range(3):
            relevant[f"q{group}{i}"] = [f"d{group}{i}", f"d{group}{i + 1}"]
    return RetrievalDataset(
        queries={id_: f"query {id_}" for id_ in relevant},
        corpus={f"d{group}{i}": "text" for group in range(n) for i in range(4)} | {"rest": "text"},
        relevant_docs=relevant,
    )


@pytest.mark.parametrize("by", ["query", "document"])
def test_split_divides_the_queries_over_the_whole_corpus(by):
    """Every query is in one part, with its judgements; each part has the whole corpus."""
    dataset = chain(20)
    parts = dataset.split(0.6, 0.2, 0.2, by=by)
    assert [len(part) for part in parts] == [36, 12, 12]
    together = [id_ for part in parts for id_ in part.queries]
    assert sorted(together) == sorted(dataset.queries)
    for part in parts:
        assert part.corpus == dataset.corpus
        assert part.relevant_docs == {id_: dataset.relevant_docs[id_] for id_ in part.queries}


def test_split_by_document_shares_none_even_through_others():
    """q00 and q02 share no document, but each shares one with q01: the three stay together."""
    parts = chain(20).split(0.5, 0.3, 0.2, by="document", seed=1)
    seen = [{d for found in part.relevant_docs.values() for d in found} for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    groups = [{id_[1:-1] for id_ in part.queries} for part in parts]
    assert sum(map(len, groups)) == 20


def test_split_by_query_does_share_documents():
    """The other kind of split cuts through groups: that is what the choice is about."""
    first, second = chain(20).split(0.5, 0.5)
    shared = [{d for found in p.relevant_docs.values() for d in found} for p in (first, second)]
    assert shared[0] & shared[1]


def test_split_is_fixed_by_its_seed_and_scales_shares():
    """Equal seeds give equal parts, other seeds others; .8 and .2 are 4 and 1."""
    dataset = chain(20)
    parts = dataset.split(0.8, 0.2, seed=5)
    assert [list(part.queries) for part in parts] == [
        list(part.queries) for part in dataset.split(4, 1, seed=5)
    ]
    assert [list(part.queries) for part in parts] != [
        list(part.queries) for part in dataset.split(4, 1, seed=6)
    ]


@pytest.mark.parametrize(
    ("shares", "by", "message"),
    [
        ((1,), "query", "two or more positive shares"),
        ((0.5, 0), "query", "two or more positive shares"),
        ((0.5, -0.5), "query", "two or more positive shares"),
        ((0.5, 0.5), "passage", "'query' or 'document', not 'passage'"),
        ((0.999, 0.001), "query", r"part 1 of .* would be empty: 6 queries in 6 groups"),
        ((0.4, 0.3, 0.3), "document", "6 queries in 2 groups are too few"),
    ],
)
def test_impossible_splits_are_refused(shares, by, message):
    """Shares below zero, unknown kinds and parts without a query."""
    with pytest.raises(ValueError, match=message):
        chain(2).split(*shares, by=by)


def test_subset_keeps_the_corpus():
    """A chosen query comes with its judgements and all documents; nothing counts as dropped."""
    dataset = make_dataset(queries={**QUERIES, "q3": "dropped"})
    part = dataset.subset(["q2"])
    assert content_of(part) == ({"q2": QUERIES["q2"]}, CORPUS, {"q2": RELEVANT["q2"]})
    assert (dataset.dropped, part.dropped) == (1, 0)


# Sentence pairs.


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.csv.gz"])
def test_similarity_from_csv(tmp_path, name):
    """Quoted commas stay in a sentence; 0…5 becomes 0…1, and 1…5 has its own zero."""
    text = '"one, two",b,5\nc,d,2\n'
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(text)
    dataset = SimilarityDataset.from_csv(tmp_path / name)
    assert (dataset.sentences1, dataset.sentences2) == (["one, two", "c"], ["b", "d"])
    np.testing.assert_allclose(dataset.scores, [1, 0.4])
    assert dataset.scores.dtype == np.float32
    np.testing.assert_allclose(
        SimilarityDataset.from_csv(tmp_path / name, scale=(1, 5)).scores, [1, 0.25]
    )
    assert (len(dataset), repr(dataset)) == (2, "SimilarityDataset(2 pairs)")
    assert dataset.subset([1]).sentences1 == ["c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,1\na,b\n", "row 1 of .* has 2 fields, expected 3"),
        ("a,b,6\n", r"pair 0 has the score 6, outside 0\.\.5: give the scale"),
        ("a,b,1\na,b,-1\n", "pair 1 has the score -1, outside"),
        ("a,b,nan\n", "pair 0 has the score nan, outside"),
        ("a,b,\n", "pair 0 has a score that is no number"),
        ("a,b,1\na,b,high\n", "pair 1 has a score that is no number"),
        ("a,,1\n", "sentence of pair '0' is blank"),
        ("a,b,1\n  ,b,1\n", "sentence of pair '1' is blank"),
        ("", "the dataset is empty"),
    ],
)
def test_similarity_names_what_is_wrong(tmp_path, text, message):
    """Each error names the row or the pair."""
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        SimilarityDataset.from_csv(tmp_path / "pairs.csv")


def test_similarity_needs_equal_numbers():
    """Two first sentences, one second and two scores are no pairs."""
    with pytest.raises(ValueError, match="2 first and 1 second sentences, 2 scores"):
        SimilarityDataset(sentences1=["a", "b"], sentences2=["c"], scores=np.ones(2))


def test_similarity_scores_given_directly_lie_in_0_to_1():
    """Without a reader nothing scales them."""
    with pytest.raises(ValueError, match=r"pair 1 has the scaled score 3.0, outside 0\.\.1"):
        SimilarityDataset(sentences1=["a", "b"], sentences2=["c", "d"], scores=np.array([1, 3]))


@pytest.mark.parametrize("scale", [(5, 0), (1, 1)])
def test_a_scale_has_a_lowest_and_a_highest_score(tmp_path, scale):
    """(5, 0) and (1, 1) are none."""
    (tmp_path / "pairs.csv").write_text("a,b,1\n")
    with pytest.raises(ValueError, match="scale must be"):
        SimilarityDataset.from_csv(tmp_path / "pairs.csv", scale=scale)
