"""Questions from tables of any make."""

import json

import pytest

from nexus_integrations.data.labels import Question
from nexus_integrations.data.tables import read_questions

EXPECTED = [
    Question(id="q1", text="who signs?", answer="the head nurse; always", page="3"),
    Question(id="q2", text="größe?", answer="10 °C", page=""),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_delimiter_and_encoding(tmp_path, encoding, delimiter):
    """A field that holds the delimiter is quoted; names in capitals are known."""
    lines = [
        ["Question", "Expected Answer", "Page Label"],
        ["who signs?", '"the head nurse; always"', "3"],
        ["größe?", "10 °C", ""],
    ]
    path = tmp_path / "questions.csv"
    path.write_text("\n".join(delimiter.join(line) for line in lines), encoding=encoding)
    table = read_questions(path)
    assert table.questions == EXPECTED
    assert table.columns == {
        "text": "Question", "answer": "Expected Answer", "page": "Page Label"
    }  # fmt: skip
    assert str(table).startswith("2 questions: text from 'Question'")


def test_excel_jsonl_and_parquet(tmp_path):
    """The same rows in other files; a page of 3.0 is page 3, a list of ids is ids."""
    openpyxl = pytest.importorskip("openpyxl")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"question": "who signs?", "answer": "the nurse", "page": 3.0, "passage_ids": "a b"},
        {"question": None, "answer": "left out", "page": None, "passage_ids": None},
    ]
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append(list(row.values()))
    book.save(tmp_path / "q.xlsx")
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    for name in ("q.xlsx", "q.jsonl", "q.parquet"):
        table = read_questions(tmp_path / name)
        assert table.questions == [
            Question(
                id="q1", text="who signs?", answer="the nurse", page="3", passage_ids=("a", "b")
            )
        ], name
        assert table.blank == 1


def test_columns_are_settable(tmp_path):
    """What no usual name tells, the caller does; what is left over is told."""
    path = tmp_path / "q.csv"
    path.write_text("asked,said,when\nwho?,me,now\n")
    table = read_questions(path, {"text": "asked", "answer": "said"})
    assert table.questions == [Question(id="q1", text="who?", answer="me")]
    assert table.unused == ["when"]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("who?,me\nwhat?,you\n", {}, r"no column of questions .* if that is data"),
        ("question,answer\n", {}, r"holds no rows"),
        ("question,answer\na,b,c\n", {}, r"line 2 of .* has more fields than the header"),
        ("question\na\n", {"answer": "said"}, r"has no column 'said', it has question"),
        ("question\na\n", {"anser": "said"}, r"no field is called 'anser'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, columns, message):
    """The file, the line or the column; never a text of the user's."""
    path = tmp_path / "q.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_questions(path, columns)


def test_a_header_that_is_data_is_not_printed(tmp_path):
    """A first line of whole sentences may be private: it is counted."""
    path = tmp_path / "q.csv"
    path.write_text("What is the dose for Mr Miller in room seven?,ten milligrams\nb,c\n")
    with pytest.raises(ValueError, match="too long for a name") as error:
        read_questions(path)
    assert "Miller" not in str(error.value)
