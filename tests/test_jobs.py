"""Whole-corpus jobs: what is read, what is refused, and that nothing is lost or done twice."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexus_integrations.backends import Role
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder, Encoded
from nexus_integrations.index import FileIndex
from nexus_integrations.jobs import JobConfig, JobResult, embed_corpus
from nexus_integrations.jobs import rows as job_rows
from nexus_integrations.jobs.inputs import find_inputs
from nexus_integrations.jobs.rows import read_rows

TEXTS = {f"d{number}": f"text {number}" for number in range(10)}


def lines(path: Path, rows: Sequence[object]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten rows as JSONL."""
    return lines(tmp_path / "in.jsonl", [{"id": i, "text": t} for i, t in TEXTS.items()])


@pytest.fixture
def angles(table_encoder: Callable[..., DendriticEncoder]) -> DendriticEncoder:
    """An encoder that looks up: text number n lies at the angle of n tenths."""
    table = {t: (np.cos(n / 10), np.sin(n / 10)) for n, t in enumerate(TEXTS.values())}
    return table_encoder({**table, "": (1, 0), " ": (1, 0), "T text 1": (0, 1)})


def rows_of(path: Path, **columns: object) -> list[tuple[str, str, str | None]]:
    """Every record of a file, as (id, text, problem)."""
    return [
        (record.id, record.text, record.problem)
        for file in find_inputs([path], **columns)
        for record in read_rows(file)
    ]


def stored(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of a Parquet file, in its order."""
    index = FileIndex(path)
    ids = [id_ for batch in index.ids() for id_ in batch]
    return ids, index.vectors(ids)


# What is read


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "parquet", "json"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """The ids and texts are those written, whatever holds them."""
    path = tmp_path / f"in.{suffix}"
    texts = {"a": 'says "hi", twice', "b": "two\nlines", "c": "ä🙂", "7": "seven"}
    sign = "\t" if suffix == "tsv" else ","
    quoted = {i: '"' + t.replace('"', '""') + '"' for i, t in texts.items()}
    content = {
        "jsonl": "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in texts.items()),
        "csv": f"id{sign}n{sign}text\r\n"
        + "".join(f"{i}{sign}1{sign}{t}\r\n" for i, t in quoted.items()),
    }
    if suffix == "parquet":
        pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), path)
    elif suffix == "json":
        RetrievalDataset(queries={"q": "?"}, corpus=texts, relevant_docs={"q": ["a"]}).to_json(path)
    else:
        data = content["jsonl" if suffix.startswith("jsonl") else "csv"].encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert rows_of(path) == [(i, t, None) for i, t in texts.items()]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "jsonl.gz", "parquet"])
def test_a_file_is_entered_at_any_record(tmp_path: Path, suffix: str) -> None:
    """From the place of a record on, the same records come as from the beginning."""
    path = tmp_path / f"in.{suffix}"
    texts = [f"{'ä' * n}\n{n}" for n in range(20)]
    if suffix == "parquet":
        table = pa.table({"id": list(range(20)), "text": texts})
        pq.write_table(table, path, row_group_size=7)
    elif suffix == "csv":
        path.write_bytes(
            b"\xef\xbb\xbfid;text\n"
            + "".join(f'{n};"{t}"\n\n' for n, t in enumerate(texts)).encode()
        )
    else:
        data = "".join(json.dumps({"id": n, "text": t}) + "\n\n" for n, t in enumerate(texts))
        path.write_bytes(gzip.compress(data.encode()) if suffix.endswith("gz") else data.encode())
    (file,) = find_inputs([path])
    records = list(read_rows(file))
    assert [record.text for record in records] == texts
    for number, record in enumerate(records):
        assert list(read_rows(file, record.offset, record.line)) == records[number:]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    """Usual names are found; others are named; a title is joined to its text as BEIR does."""
    beir = lines(tmp_path / "b.jsonl", [{"_id": "x", "title": "T", "text": "text 1", "n": 1}])
    assert rows_of(beir) == [("x", "T text 1", None)]
    assert rows_of(beir, text_columns=["text"]) == [("x", "text 1", None)]
    other = lines(tmp_path / "o.jsonl", [{"key": 5, "words": "w", "body": "b"}])
    assert rows_of(other, id_column="key") == [("5", "b", None)]
    assert rows_of(other, id_column="key", text_columns=["words", "body"]) == [("5", "w b", None)]
    with pytest.raises(ValueError, match=r"columns \['key', 'words', 'body'\]: expected an id"):
        find_inputs([other])
    with pytest.raises(ValueError, match="expected key and wrods"):
        find_inputs([other], id_column="key", text_columns=["wrods"])


def test_a_beir_folder_is_read_as_the_dataset_reads_it(tmp_path: Path) -> None:
    """`folder:split` and `folder` give the corpus that from_beir gives."""
    lines(
        tmp_path / "corpus.jsonl",
        [{"_id": "a", "text": "A "}, {"_id": "b", "title": "T", "text": "B"}],
    )
    lines(tmp_path / "queries.jsonl", [{"_id": "q", "text": "?"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    corpus = RetrievalDataset.from_beir(tmp_path, split="train").corpus
    for name in (tmp_path, f"{tmp_path}:train"):
        assert {i: t for i, t, _ in rows_of(name)} == corpus  # type: ignore[arg-type]


def test_a_folder_is_read_in_order_and_hidden_files_are_not(
    tmp_path: Path, angles: DendriticEncoder
) -> None:
    """Files of several kinds follow one another by name; a shard may reach over their borders."""
    folder = tmp_path / "parts"
    (folder / "b").mkdir(parents=True)
    lines(folder / "a.jsonl", [{"id": "one", "text": "text 1"}])
    (folder / "b" / "c.csv").write_text("id,text\ntwo,text 2\nthree,text 3\n")
    lines(folder / ".hidden.jsonl", [{"id": "no", "text": "text 9"}])
    (folder / "notes.md").write_text("not read")
    (folder / "dataset_info.json").write_text('{"features": {}}')
    embed_corpus([folder], tmp_path / "v.parquet", lambda: angles, JobConfig(shard_rows=2))
    ids, vectors = stored(tmp_path / "v.parquet")
    assert ids == ["one", "two", "three"]
    assert vectors == pytest.approx(angles.encode_documents(["text 1", "text 2", "text 3"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no \.jsonl"):
        find_inputs([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"notes\.md is not of a kind that is read"):
        find_inputs([folder / "notes.md"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_inputs(["nowhere"])


# What is refused

BAD = [
    '{"id": "a", "text": "text 1"}',
    '{"id": "b", "text": "text 2"',
    "",
    '["c", "text 3"]',
    '{"text": "text 4"}',
    '{"id": "e"}',
    '{"id": "f", "text": 5}',
    '{"id": 1.5, "text": "text 6"}',
    '{"id": "a", "text": "text 7"}',
    '{"id": "\\ud83d", "text": "text 8"}',
    '{"id": "z", "text": "text 9"}',
]
PROBLEMS = {
    2: "is not valid JSON",
    4: "is a list: expected an object",
    5: "has no id",
    6: "has no text",
    7: "has a text of type int",
    8: "has an id of type float",
    9: "repeats the id 'a' of in.jsonl, line 1",
    10: "lone surrogate",
}


def test_bad_rows_are_told_by_line_before_anything_is_embedded(
    tmp_path: Path, angles: DendriticEncoder
) -> None:
    """Every kind of bad row is named by its line, in the error and in a file, without its text."""
    (tmp_path / "in.jsonl").write_text("\n".join(BAD))
    with pytest.raises(ValueError, match="8 bad rows") as caught:
        embed_corpus([tmp_path / "in.jsonl"], tmp_path / "v.parquet", lambda: angles)
    for line, problem in PROBLEMS.items():
        assert f"in.jsonl, line {line} {problem}" in str(caught.value).replace(
            "has an id with a ", ""
        )
    report = (tmp_path / "v.parquet.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in report] == list(PROBLEMS)
    assert "text 7" not in str(report)
    assert angles.backbone.asked == []  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "v.parquet.rejected.jsonl",
    ]


@pytest.mark.parametrize("shard_rows", [1, 2, 100])
def test_bad_rows_are_left_out_where_asked(
    tmp_path: Path, angles: DendriticEncoder, shard_rows: int
) -> None:
    """The good rows are embedded in order, also when a shard is entered in the middle."""
    (tmp_path / "in.jsonl").write_text("\n".join(BAD))
    result = embed_corpus(
        [tmp_path / "in.jsonl"],
        tmp_path / "v.parquet",
        lambda: angles,
        JobConfig(skip_bad=True, shard_rows=shard_rows),
    )
    ids, vectors = stored(tmp_path / "v.parquet")
    assert ids == ["a", "z"]
    assert vectors == pytest.approx(angles.encode_documents(["text 1", "text 9"]))
    assert (result.rows, result.rejected) == (2, 8)
    assert result.rejects == tmp_path / "v.parquet.rejected.jsonl"


def test_bad_csv_rows(tmp_path: Path) -> None:
    """Fields too many or too few, a stray quote and bytes that are no UTF-8 are told by line."""
    path = tmp_path / "in.csv"
    path.write_bytes(
        b'id,text\na,"one\ntwo"\nb,not, quoted\nc\n,no id\nd,"x"y\ne,\xff\xfe\nf,fine\n'
    )
    found = {
        record.line: record.problem or record.text
        for file in find_inputs([path])
        for record in read_rows(file)
    }
    assert found == {
        2: "one\ntwo",
        4: "has 3 fields: expected 2, as the header has",
        5: "has 1 fields: expected 2, as the header has",
        6: "has no id",
        7: "is not valid CSV: ',' expected after '\"'",
        8: "is not UTF-8",
        9: "fine",
    }


def test_long_fields_are_read(tmp_path: Path) -> None:
    """A text of a million characters is no error, as it is to the csv module as it comes."""
    path = tmp_path / "in.csv"
    path.write_text("id,text\na," + "x" * 1_000_000 + "\n")
    assert len(rows_of(path)[0][1]) == 1_000_000


def test_inputs_that_cannot_be_a_corpus(tmp_path: Path, angles: DendriticEncoder) -> None:
    """Nothing to embed, an output of no kind, an output that is an input."""
    empty = lines(tmp_path / "in.jsonl", [{"id": "", "text": "text 1"}])
    skip = JobConfig(skip_bad=True)
    with pytest.raises(ValueError, match="no row to embed"):
        embed_corpus([empty], tmp_path / "v.parquet", lambda: angles, skip)
    with pytest.raises(ValueError, match=r"must end in \.parquet or \.npy"):
        embed_corpus([empty], tmp_path / "v.txt", lambda: angles)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="among the inputs"):
        embed_corpus([tmp_path / "p.parquet"], tmp_path / "p.parquet", lambda: angles)
    (tmp_path / "broken.csv").write_text('"' + "x" * 2**24 + "\n")
    with pytest.raises(ValueError, match=r"broken\.csv is not valid CSV: field larger"):
        embed_corpus([tmp_path / "broken.csv"], tmp_path / "v.parquet", lambda: angles)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet is not a Parquet file"):
        embed_corpus([tmp_path / "broken.parquet"], tmp_path / "v.parquet", lambda: angles)


# What is written


def test_parquet_equals_one_call_of_the_encoder(
    corpus: Path, tmp_path: Path, angles: DendriticEncoder
) -> None:
    """Ids in the order of the input, the encoder's vectors, and nothing left beside the file."""
    result = embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles, JobConfig(shard_rows=3))
    ids, vectors = stored(tmp_path / "v.parquet")
    assert ids == list(TEXTS)
    assert np.array_equal(vectors, angles.encode_documents(list(TEXTS.values())))
    assert (result.rows, result.resumed, result.dimension) == (10, 0, 2)
    assert result.fingerprint == angles.document_fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "v.parquet"]
    about = pq.read_schema(tmp_path / "v.parquet").metadata
    assert about[b"fingerprint"].decode() == angles.document_fingerprint


def test_npy_with_ids_beside_it(corpus: Path, tmp_path: Path, angles: DendriticEncoder) -> None:
    """A plain float32 array, and one JSON string a line for its rows."""
    result = embed_corpus([corpus], tmp_path / "v.npy", lambda: angles, JobConfig(shard_rows=4))
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, angles.encode_documents(list(TEXTS.values())))
    assert result.ids == tmp_path / "v.ids.jsonl"
    assert [json.loads(line) for line in result.ids.open()] == list(TEXTS)


def test_roles_have_their_own_side(corpus: Path, tmp_path: Path, angles: DendriticEncoder) -> None:
    """Queries go through the encoder's query side, under its whole fingerprint."""
    embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles, JobConfig(role="query"))
    assert {role for role, _ in angles.backbone.asked} == {"query"}  # type: ignore[attr-defined]
    about = pq.read_schema(tmp_path / "v.parquet").metadata
    assert (about[b"role"], about[b"fingerprint"].decode()) == (b"query", angles.fingerprint)


def test_a_result_is_saved_and_printed(corpus: Path, tmp_path: Path, angles) -> None:
    """It loads again as it was, and prints what a user must know in a few lines."""
    config = JobConfig(shard_rows=4)
    interrupted(corpus, tmp_path / "v.npy", angles, 1, config)
    result = embed_corpus([corpus], tmp_path / "v.npy", lambda: angles, config)
    result.save(tmp_path / "result.json")
    assert JobResult.load(tmp_path / "result.json") == result
    told = str(replace(result, seconds=0.5, blank=1200, truncated=3)).splitlines()
    ids = tmp_path / "v.ids.jsonl"
    assert told == [
        f"10 vectors of 2 numbers were written to {tmp_path / 'v.npy'}, their ids to {ids}.",
        "6 rows were embedded in 0.5 s (12 rows/s).",
        "An earlier run had embedded 4 rows.",
        "3 texts were longer than the model reads and cut off.",
        "1,200 texts are blank: their vectors mean nothing.",
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "csv.gz", "parquet", "json"])
def test_a_text_is_read_twice_at_most(
    tmp_path: Path, angles: DendriticEncoder, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Once to check all rows, once to embed its shard; after an interruption as well."""
    path = tmp_path / f"in.{suffix}"
    if suffix == "jsonl":
        lines(path, [{"id": i, "text": t} for i, t in TEXTS.items()])
    elif suffix == "csv.gz":
        content = "id,text\n" + "".join(f"{i},{t}\n" for i, t in TEXTS.items())
        path.write_bytes(gzip.compress(content.encode()))
    elif suffix == "parquet":
        pq.write_table(pa.table({"id": list(TEXTS), "text": list(TEXTS.values())}), path)
    else:
        RetrievalDataset(queries={"q": "?"}, corpus=TEXTS, relevant_docs={"q": ["d0"]}).to_json(
            path
        )
    read, make, from_json = [], job_rows._row, RetrievalDataset.from_json

    def counted(file, offset, line, values):
        read.append(values[0])
        return make(file, offset, line, values)

    monkeypatch.setattr(job_rows, "_row", counted)
    config, parsed = JobConfig(shard_rows=2), []
    monkeypatch.setattr(RetrievalDataset, "from_json", lambda p: parsed.append(p) or from_json(p))
    embed_corpus([path], tmp_path / "v.parquet", lambda: angles, config)
    assert sorted(read) == sorted([*TEXTS, *TEXTS])
    assert len(parsed) == (2 if suffix == "json" else 0)
    interrupted(path, tmp_path / "w.parquet", angles, 3, config)
    read.clear()
    embed_corpus([path], tmp_path / "w.parquet", lambda: angles, config)
    assert max(read.count(id_) for id_ in TEXTS) == 2
    asked = sorted(text for _, text in angles.backbone.asked)  # type: ignore[attr-defined]
    assert asked == sorted([*TEXTS.values(), *TEXTS.values()]), "each once in both jobs"


def test_an_unfinished_job_is_its_owners(
    corpus: Path, tmp_path: Path, angles: DendriticEncoder
) -> None:
    """Nobody else looks into the folder of shards."""
    interrupted(corpus, tmp_path / "v.parquet", angles, 1, JobConfig(shard_rows=2))
    assert (tmp_path / "v.parquet.parts").stat().st_mode & 0o777 == 0o700


def test_blank_texts_are_embedded_and_counted(tmp_path: Path, angles: DendriticEncoder) -> None:
    """As by the encoder itself: a vector, a warning, and their number in the result."""
    path = lines(
        tmp_path / "in.jsonl", [{"id": i, "text": t} for i, t in {"a": "", "b": " "}.items()]
    )
    with pytest.warns(UserWarning, match="are blank"):
        result = embed_corpus([path], tmp_path / "v.parquet", lambda: angles)
    assert (result.rows, result.blank) == (2, 2)


# What an interruption leaves


def interrupted(
    corpus: Path, output: Path, encoder: DendriticEncoder, after: int, config: JobConfig
) -> None:
    """Run a job whose encoder fails after some shards."""
    encode, calls = encoder.encode, []

    def failing(texts: Sequence[str], role: Role) -> Encoded:
        calls.append(texts)
        if len(calls) > after:
            raise KeyboardInterrupt
        return encode(texts, role)

    encoder.encode = failing  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            embed_corpus([corpus], output, lambda: encoder, config)
    finally:
        del encoder.encode  # type: ignore[method-assign]


def test_a_job_goes_on_where_it_was(corpus: Path, tmp_path: Path, angles: DendriticEncoder) -> None:
    """Finished shards are not embedded again, and the file is that of an uninterrupted run."""
    config = JobConfig(shard_rows=2)
    embed_corpus([corpus], tmp_path / "whole.parquet", lambda: angles, config)
    interrupted(corpus, tmp_path / "v.parquet", angles, 3, config)
    assert not (tmp_path / "v.parquet").exists()
    angles.backbone.asked.clear()  # type: ignore[attr-defined]
    result = embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles, config)
    assert result.resumed == 6
    asked = [text for _, text in angles.backbone.asked]  # type: ignore[attr-defined]
    assert asked == ["text 6", "text 7", "text 8", "text 9"]
    assert (tmp_path / "v.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / "v.parquet.parts").exists()


def test_another_input_or_model_is_refused(
    corpus: Path, tmp_path: Path, angles: DendriticEncoder, table_encoder
) -> None:
    """The message names what changed; --restart begins anew; putting it back goes on."""
    config, output = JobConfig(shard_rows=2), tmp_path / "v.parquet"
    interrupted(corpus, output, angles, 1, config)
    other = table_encoder(dict.fromkeys(TEXTS.values(), (0, 1)))
    other.backbone.digest = "another"
    with pytest.raises(ValueError, match=r"another job: the model \(its fingerprint\) changed"):
        embed_corpus([corpus], output, lambda: other, config)
    with pytest.raises(ValueError, match="another job: the rows per shard changed"):
        embed_corpus([corpus], output, lambda: angles, JobConfig(shard_rows=3))
    before = corpus.read_bytes()
    corpus.write_bytes(before.replace(b"d9", b"dX"))
    with pytest.raises(ValueError, match="another job: the input files or their columns changed"):
        embed_corpus([corpus], output, lambda: angles, config)
    corpus.write_bytes(before)
    assert embed_corpus([corpus], output, lambda: angles, config).resumed == 2
    interrupted(corpus, output, angles, 1, config)
    anew = embed_corpus([corpus], output, lambda: other, JobConfig(shard_rows=2, restart=True))
    assert anew.resumed == 0
    assert stored(output)[1] == pytest.approx(np.tile([0, 1], (10, 1)))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "of another job", "gone"])
def test_a_damaged_shard_is_embedded_again(
    corpus: Path, tmp_path: Path, angles: DendriticEncoder, damage: str
) -> None:
    """What the disk spoiled does not reach the result."""
    config, output = JobConfig(shard_rows=5), tmp_path / "v.parquet"
    interrupted(corpus, output, angles, 1, config)
    part = tmp_path / "v.parquet.parts" / "00000000.parquet"
    data = bytearray(part.read_bytes())
    if damage == "truncated":
        part.write_bytes(data[:-20])
    elif damage == "flipped":
        place = data.index(np.float32(np.cos(0.3)).tobytes())
        data[place] ^= 1
        part.write_bytes(data)
    elif damage == "of another job":
        pq.write_table(pq.read_table(part).replace_schema_metadata({"job": "x"}), part)
    else:
        part.unlink()
    result = embed_corpus([corpus], output, lambda: angles, config)
    assert result.resumed == 0
    assert np.array_equal(stored(output)[1], angles.encode_documents(list(TEXTS.values())))


def test_an_input_that_changes_while_the_job_runs(
    corpus: Path, tmp_path: Path, angles: DendriticEncoder
) -> None:
    """A row that is not the planned one is noticed before its vector is written."""
    # Rows longer than any buffer: what is not read yet is still in the file alone.
    rows = [{"id": i, "text": t, "note": "x" * 2**20} for i, t in TEXTS.items()]
    lines(corpus, rows)
    encode = angles.encode

    def change(texts: Sequence[str], role: Role) -> Encoded:
        corpus.write_bytes(corpus.read_bytes().replace(b"text 9", b"text 0"))
        return encode(texts, role)

    angles.encode = change  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"in\.jsonl changed while the job ran \(from line 6 on\)"):
        embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles, JobConfig(shard_rows=5))


def test_two_processes_do_not_share_an_output(
    corpus: Path, tmp_path: Path, angles: DendriticEncoder
) -> None:
    """The second one is refused while the first one works."""

    def second(texts: Sequence[str], role: Role) -> object:
        return embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles)

    angles.encode = second  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="another process is embedding"):
        embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles)


def test_memory_does_not_grow_with_the_input(tmp_path: Path, table_encoder) -> None:
    """Four times the rows take no more memory: rows, ids and vectors pass through."""
    import tracemalloc

    encoder = table_encoder({"t" * 200: (0, 1)})
    encoder.backbone.asked = type("Nothing", (list,), {"__iadd__": lambda self, other: self})()
    peaks = []
    for rows in (5_000, 20_000):
        path = tmp_path / f"{rows}.csv"
        path.write_text("id,text\n" + "".join(f"{n},{'t' * 200}\n" for n in range(rows)))
        tracemalloc.start()
        embed_corpus([path], tmp_path / "v.npy", lambda: encoder, JobConfig(shard_rows=1_000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred rows with repeated texts, in two files."""
    folder = tmp_path_factory.mktemp("many")
    rows = [{"id": f"r{n}", "text": f"words {n % 37} and {n}"} for n in range(400)]
    lines(folder / "a.jsonl", rows[:150])
    (folder / "b.csv").write_text(
        "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows[150:])
    )
    return folder


KILLED = """
import os, signal, sys
import filelock, numpy, pyarrow.parquet
from pathlib import Path
from nexus_integrations.encoder import Encoded
from nexus_integrations.jobs import JobConfig, embed_corpus

class Lengths:
    dimension, document_fingerprint = 2, "lengths"
    def encode(self, texts, role):
        angles = numpy.array([len(text) for text in texts], dtype=numpy.float32)
        return Encoded(numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1), 0, 0)

many, folder = sys.argv[1:]
encoder = Lengths()
os.fsync = lambda handle: None  # a killed process loses nothing that it has written
whole, output = Path(folder, "whole.parquet"), Path(folder, "v.parquet")
parts = Path(folder, "v.parquet.parts")
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "sqlite3.connect")

def run(output, kill_at=0):
    "Run the job in a child that kills itself at a change of a file; return status and changes."
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        status = os.waitpid(child, 0)[1]
        changes = os.read(read, 100)
        os.close(read)
        return status, int(changes or 0)
    count = 0
    def before_each_change(event, arguments):
        nonlocal count
        if event in CHANGES and str(arguments[0]).startswith(folder):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(before_each_change)
    embed_corpus([many], output, lambda: encoder, JobConfig(shard_rows=150))
    os.write(write, str(count).encode())
    os._exit(0)

embed_corpus([many], whole, lambda: encoder)  # what it imports on first use the children have
status, changes = run(whole)
assert status == 0
shards = set()
for kill_at in range(1, changes + 1):
    status, _ = run(output, kill_at)
    assert status == signal.SIGKILL, (kill_at, status)
    shards.add(len(list(parts.glob("0*"))))
    status, _ = run(output)
    assert status == 0, (kill_at, status)
    assert output.read_bytes() == whole.read_bytes(), kill_at
    assert not parts.exists(), kill_at
    output.unlink()
kill_at = kills = 0
while status := run(output, kill_at := kill_at + 3)[0]:
    assert status == signal.SIGKILL, (kill_at, status)
    kills += 1
assert output.read_bytes() == whole.read_bytes()
print(changes, kills, *sorted(shards))
"""


def test_killed_at_any_change_of_a_file_it_ends_with_the_same_file(
    many: Path, tmp_path: Path, package_environment: dict[str, str]
) -> None:
    """Killed before each change of a file, once or again and again, it ends with the same bytes."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, many, tmp_path],
        env=package_environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    changes, kills, *shards = map(int, done.stdout.split())
    assert shards == [0, 1, 2, 3], "it was killed before, among and after its three shards"
    assert changes > 20
    assert kills > 5
    assert stored(tmp_path / "v.parquet")[0] == [f"r{number}" for number in range(400)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.parquet", "whole.parquet"]


@pytest.mark.ray
def test_ray_gives_what_one_machine_gives(
    many: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of one CPU each: the same file; what one engine began another finishes."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray._common.usage.usage_lib import usage_stats_enabled
    from ray._private import state
    from ray.cluster_utils import Cluster

    load = partial(DendriticEncoder.load, str(tiny_model))
    small = JobConfig(shard_rows=25)
    embed_corpus([many], tmp_path / "local.parquet", load, small)
    interrupted(many, tmp_path / "v.parquet", load(), 4, small)
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
        config = JobConfig(shard_rows=25, engine="ray")
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
        with pytest.raises(ValueError, match="3 workers need a CPU each"):
            embed_corpus([many], tmp_path / "v.parquet", load, replace(config, workers=3))
        result = embed_corpus([many], tmp_path / "v.parquet", load, config)
        assert usage_stats_enabled() is False
        assert (result.rows, result.resumed) == (400, 100)
        actors = [a for a in state.actors().values() if "_Worker" in a["ActorClassName"]]
        assert len({actor["Address"]["NodeID"] for actor in actors}) == 2, "a worker on each"
    finally:
        ray.shutdown()
        cluster.shutdown()
    ids, vectors = stored(tmp_path / "v.parquet")
    expected_ids, expected = stored(tmp_path / "local.parquet")
    assert ids == expected_ids
    assert np.abs(vectors - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("library", "extra"), [("ray", "ray"), ("pyarrow.parquet", "jobs")], ids=lambda name: name
)
def test_a_library_missing(
    corpus: Path,
    tmp_path: Path,
    angles: DendriticEncoder,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    extra: str,
) -> None:
    """The message is the line that installs it."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'pip install "nexus-integrations\[{extra}\]"'):
        embed_corpus([corpus], tmp_path / "v.parquet", lambda: angles, JobConfig(engine="ray"))


def test_jobs_need_no_torch(package_environment: dict[str, str]) -> None:
    """A job with an exported model imports neither torch nor what is built on it."""
    heavy = ("torch", "transformers", "sentence_transformers", "datasets", "pandas", "ray")
    program = (
        f"import sys, nexus_integrations.jobs; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=package_environment, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_settings_out_of_range() -> None:
    """Each is refused by name."""
    with pytest.raises(ValueError, match="role must be one of"):
        JobConfig(role="passage")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shard_rows must be at least 1"):
        JobConfig(shard_rows=0)
    with pytest.raises(ValueError, match='workers is at least 1, and for engine="ray" alone'):
        JobConfig(workers=2)
