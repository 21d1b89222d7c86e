"""The command line, as a person and as a program use it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import nexus_integrations
from nexus_integrations.cli import app
from nexus_integrations.cli.output import Output
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index import MemoryIndex

_NUDGE = ("apply", "undo", "observe", "forget", "refresh", "status")
COMMANDS = [
    *((name,) for name in typer.main.get_command(app).commands if name != "nudge"),
    *(("nudge", name) for name in _NUDGE),
]


def run(*arguments: object) -> tuple[int, str, str]:
    """Run `nexus` in this process; return status, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    clinic: tuple[RetrievalDataset, RetrievalDataset, RetrievalDataset],
) -> Path:
    """A folder with train.json, dev.json and test.json of the clinic."""
    folder = tmp_path_factory.mktemp("cli")
    for name, part in zip(("train", "dev", "test"), clinic, strict=True):
        part.to_json(folder / f"{name}.json")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_every_command(command: tuple[str, ...]) -> None:
    """--help ends with status 0 and shows usage and options."""
    status, output, _ = run(*command, "--help")
    assert status == 0
    assert "Usage" in output
    assert "--json" in output


def test_help_needs_no_torch() -> None:
    """The first answer comes at once: --help imports neither torch nor sentence-transformers."""
    script = (
        "import sys\n"
        "from nexus_integrations.cli import app\n"
        "try:\n    app(['finetune', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'sentence_transformers' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()


@pytest.mark.model
def test_the_whole_job_by_command(files: Path) -> None:
    """From embed to undo: the gain is seen in the figures, and is gone afterwards."""
    vectors, tuned, state = files / "vectors.parquet", files / "tuned", files / "state"
    status, output, error = run("embed", files / "test.json", vectors, "--json")
    assert status == 0, error
    assert json.loads(output)["rows"] == 126

    judged = (vectors, files / "test.json", "--trained-on", files / "train.json")
    status, output, _ = run("evaluate", *judged, "--json", "-o", files / "before.json")
    assert status == 0
    assert json.loads(output) == json.loads((files / "before.json").read_text())
    assert json.loads(output)["repeated"] is not None
    before = json.loads(output)["metrics"]["ndcg@10"]

    status, output, error = run(
        *("finetune", files / "train.json", tuned, "--dev", files / "dev.json"),
        *("--vectors", vectors, "--dendrites", 0, "--plot", files / "growth.png", "--json"),
    )
    assert status == 0, error
    told = json.loads(output)
    assert told["score"] > told["baseline_score"] + 0.05
    assert (files / "growth.png").read_bytes().startswith(b"\x89PNG")

    base = MemoryIndex.load(vectors)
    ids = [id_ for batch in base.ids() for id_ in batch]
    status, output, error = run(
        *("nudge", "apply", vectors, files / "train.json", "--dev", files / "dev.json"),
        *("--model", tuned, "--state", state, "--gamma", 0.02, "--json"),
    )
    assert status == 0, error
    assert json.loads(output)["moved"] > 100
    assert not np.array_equal(MemoryIndex.load(vectors).vectors(ids), base.vectors(ids))

    status, output, error = run(
        *("evaluate", vectors, files / "test.json", "--model", tuned),
        *("--against", files / "before.json", "--json"),
    )
    assert status == 0, error
    told = json.loads(output)
    assert told["metrics"]["ndcg@10"] > before + 0.05
    assert told["comparison"]["differences"]["ndcg@10"] == pytest.approx(
        told["metrics"]["ndcg@10"] - before
    )

    status, output, error = run("nudge", "undo", vectors, "--state", state)
    assert status == 0, error
    assert np.array_equal(MemoryIndex.load(vectors).vectors(ids), base.vectors(ids))
    status, _, error = run("nudge", "undo", vectors, "--state", state)
    assert status == 1
    assert "holds no nudge" in error


@pytest.mark.model
def test_embed_reads_files_and_tells_what_it_did(tmp_path: Path) -> None:
    """Columns by option, two inputs, an array with ids; bad rows are a choice; --help knows all."""
    (tmp_path / "a.csv").write_text("key,words\nx,one\ny,two\nx,again\n")
    (tmp_path / "b.jsonl").write_text('{"key": 3, "words": "three"}\n')
    given = ("embed", tmp_path / "a.csv", tmp_path / "b.jsonl", tmp_path / "v.npy")
    columns = ("--id-column", "key", "--text-column", "words")
    status, _, error = run(*given, *columns)
    assert status == 1
    assert "a.csv, line 4 repeats the id 'x' of a.csv, line 2" in error.replace("\n", " ")
    status, output, error = run(*given, *columns, "--skip-bad", "--role", "query", "--json")
    assert status == 0, error
    told = json.loads(output)
    assert (told["rows"], told["rejected"], told["resumed"]) == (3, 1, 0)
    assert len(told["fingerprint"]) == 64
    assert np.load(tmp_path / "v.npy").shape == (3, 384)
    assert Path(told["ids"]).read_text() == '"x"\n"y"\n"3"\n'
    how = ("--backend", "torch", "--precision", "float32")
    status, _, error = run(*given, *columns, "--skip-bad", *how)
    assert status == 1
    assert "v.npy exists: --force overwrites it" in error.replace("\n", " ")
    status, output, _ = run(*given, *columns, "--skip-bad", *how, "--force")
    assert status == 0
    assert "3" in output
    assert run("embed", "a.csv", "v.npy", "--workers", "2")[0] == 2
    assert run("embed", "a.csv", "v.npy", "--precision", "int4")[0] == 2


@pytest.mark.model
def test_a_person_reads_tables(files: Path) -> None:
    """Without --json the result is a table and whole sentences."""
    vectors = files / "people.parquet"
    assert run("embed", files / "test.json", vectors)[0] == 0
    status, output, _ = run("evaluate", vectors, files / "test.json")
    assert status == 0
    assert "ndcg@10" in output
    assert "95% interval" in output
    assert "The right passage came first for" in output


@pytest.mark.model
def test_demo_writes_what_it_says(tmp_path: Path) -> None:
    """The demo leaves encoder, state, vectors, plots and report, gains, and undoes bit for bit."""
    status, output, error = run("demo", "--output", tmp_path, "--dendrites", 0, "--json")
    assert status == 0, error
    told = json.loads(output)
    assert told["stages"]["before"]["metrics"]["ndcg@10"] < 0.75
    assert told["gain"]["differences"]["ndcg@10"] > 0.05
    assert told["undone"] is True
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("encoder", "state", "vectors.parquet", "growth.png", "gamma.png", "report.html")
    }
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This file holds texts" in page  # all of them fictional
    # Once more into the same folder, with another encoder than the state there knows.
    again = ("demo", "-o", tmp_path, "--dendrites", 0, "--seed", 1)
    status, _, error = run(*again)
    assert status == 1
    assert "is not empty: --force" in error.replace("\n", " ")
    status, output, error = run(*again, "--force")
    assert status == 0, error
    assert "The right passage came first for" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed", "missing.json", "out.parquet"), "missing.json"),
        (("evaluate", "missing.parquet", "missing.json"), "there is no file missing.parquet"),
        (("nudge", "undo", "missing.parquet"), "missing.parquet"),
        (("nudge", "status", "missing"), "there is no file missing"),
    ],
)
def test_errors_are_one_line_with_status_1(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user can mend is told in one line, without a traceback."""
    monkeypatch.chdir(tmp_path)
    status, output, error = run(*arguments)
    assert status == 1
    assert output == ""
    assert message in error.replace("\n", "")
    assert "Traceback" not in error


def test_a_folder_in_use_is_refused_before_training(tmp_path: Path) -> None:
    """Nothing is read, embedded or trained for an encoder that could not be saved."""
    (tmp_path / "notes.txt").write_text("mine")
    status, _, error = run("finetune", tmp_path / "no data", tmp_path)
    assert status == 1
    assert "holds something other than a saved encoder" in error.replace("\n", " ")
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert "is a file" in run("finetune", tmp_path / "no data", tmp_path / "notes.txt")[2]


def test_brackets_in_a_path_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no markup, which would vanish or be an error."""
    output = Output(as_json=False)
    output.tell("Writing to /data/[old]/[/x]")
    output.result(None, "Saved to /data/[old]/[/x].")
    told = capsys.readouterr()
    assert told.err == "Writing to /data/[old]/[/x]\n"
    assert told.out == "Saved to /data/[old]/[/x].\n"


def test_a_file_that_is_no_dataset(tmp_path: Path) -> None:
    """A JSON file without the three parts is named, and nothing is written."""
    (tmp_path / "other.json").write_text('{"queries": {}}')
    status, _, error = run("embed", tmp_path / "other.json", tmp_path / "out.parquet")
    assert status == 1
    assert "lacks corpus, relevant_docs" in error.replace("\n", " ")
    assert os.listdir(tmp_path) == ["other.json"]


@pytest.mark.parametrize(
    "arguments",
    [("finetune",), ("demo", "--dendrites", "-1"), ("embed", "--colour"), ("unknown",)],
)
def test_mistyped_commands_have_status_2(arguments: tuple[str, ...]) -> None:
    """A missing argument, a value out of range, an unknown option or command is a usage error."""
    assert run(*arguments)[0] == 2


def test_version() -> None:
    """--version prints the package's version and nothing else."""
    assert run("--version") == (0, f"{nexus_integrations.__version__}\n", "")


@pytest.fixture
def beir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two passages, four questions, the splits train, dev and test; the working directory."""
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    passages = [{"_id": "d1", "text": "about keys"}, {"_id": "d2", "text": "about leave"}]
    questions = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)]
    for name, rows in (("corpus", passages), ("queries", questions)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, rows in (("train", "q0\td1\t1\nq1\td2\t1"), ("dev", "q2\td1\t1")):
        (folder / "qrels" / f"{name}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td2\t1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("finetune", "data", "tuned"), "data needs a split: it has dev, test, train"),
        (("finetune", "data:trian", "tuned"), "data has no split 'trian': it has dev, test, train"),
        (("finetune", "data:test", "tuned"), "data:test is the test split"),
        (("finetune", "data:train", "tuned", "--dev", "data:test"), "is the test split"),
        (("evaluate", "v.parquet", "data:tets"), "data has no split 'tets'"),
        (("nudge", "apply", "v.parquet", "data:test"), "is the test split"),
        (("nudge", "apply", "v.parquet", "data"), "name one, as in data:train"),
        (("nudge", "refresh", "v.parquet", "--dataset", "data"), "data needs a split"),
        (("finetune", "dat:train", "tuned"), "there is no file dat:train"),
        (("finetune", "data:train", "tuned", "--model", "tund"), "there is no folder tund"),
        (("evaluate", "v.parquet", "data:test", "-m", "./none"), "there is no folder ./none"),
        (("evaluate", "vv.parquet", "data:test"), "did you mean v.parquet?"),
        (("embed", "data", "v.parquet"), "v.parquet exists: --force overwrites it"),
        (("export", "old"), "old is not empty: --force overwrites"),
        (("demo", "-o", "old"), "old is not empty: --force overwrites"),
        (("report", "a.json", "b.json", "-o", "v.parquet"), "v.parquet exists"),
        (("evaluate", "v.parquet", "data:test", "-o", "v.parquet"), "v.parquet exists"),
        (("finetune", "data:train", "saved"), "saved is not empty: --force overwrites"),
        (("finetune", "data:train", "x", "--plot", "v.parquet"), "v.parquet exists"),
    ],
)
def test_nothing_is_guessed_or_overwritten(
    beir: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Splits, names that are near, and what is there already: each a message, nothing done."""
    MemoryIndex(["d1", "d2"], np.eye(2, dtype=np.float32)).save(beir / "v.parquet")
    for folder, name in (("old", "thesis.txt"), ("saved", "nexus.json")):
        (beir / folder).mkdir()
        (beir / folder / name).write_text("mine")
    before = (beir / "v.parquet").read_bytes()
    status, output, error = run(*arguments)
    assert (status, output) == (1, "")
    assert message in " ".join(error.split())
    assert (beir / "v.parquet").read_bytes() == before
    assert {path.name for path in beir.iterdir()} == {"data", "old", "saved", "v.parquet"}


def test_a_name_that_is_near_is_proposed(beir: Path, no_network: None) -> None:
    """A misspelt folder is not looked up on a hub."""
    (beir / "tuned").mkdir()
    MemoryIndex(["d1", "d2"], np.eye(2, dtype=np.float32)).save(beir / "v.parquet")
    status, _, error = run("evaluate", "v.parquet", "data:test", "--model", "tunde")
    assert status == 1
    assert "there is no folder tunde (did you mean tuned?)" in " ".join(error.split())


@pytest.mark.usefixtures("beir")
def test_the_life_of_a_nudge_by_command(tiny_model: Path) -> None:
    """Apply, status, observe, forget, refresh, undo: the state says what each has done."""
    model = ("--model", tiny_model)
    status, _, error = run("embed", "data", "v.parquet", *model)
    assert status == 0, error
    base = MemoryIndex.load("v.parquet").vectors(["d1", "d2"])
    given = ("v.parquet", "data:train", *model, "--gamma", 0.1)
    status, _, error = run("nudge", "apply", *given)
    assert status == 0, error

    def questions() -> int:
        status, output, error = run("nudge", "status", "--json")
        assert status == 0, error
        return int(json.loads(output)["queries"])

    assert questions() == 2
    asked = ("nudge", "observe", "v.parquet", "d1", "--question", "which key", "--id", "q9", *model)
    status, output, error = run(*asked)
    assert status == 0, error
    assert questions() == 3
    assert "which key" not in output + error
    assert "question 'q9' is in the state already" in run(*asked)[2].replace("\n", " ")
    status, _, error = run("nudge", "forget", "v.parquet", "q9", "q8")
    assert status == 1
    assert "holds no question 'q8' (1 such ids of 2)" in error.replace("\n", " ")
    status, output, _ = run("nudge", "forget", "v.parquet", "q9", "--json")
    assert json.loads(output) == {"questions": 1, "documents": 1, "passed_over": 0, "remains": ""}
    assert questions() == 2
    status, output, error = run("nudge", "refresh", "v.parquet", "--dataset", "data:dev", "--json")
    assert status == 0, error
    assert json.loads(output)["deleted"] == 0
    assert run("nudge", "undo", "v.parquet")[0] == 0
    assert np.array_equal(MemoryIndex.load("v.parquet").vectors(["d1", "d2"]), base)


def test_sentence_pairs_are_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    """A CSV file of two sentences and a score; the scores' scale is an option."""
    rows = [f"one {n},two {n * n},{n % 5}" for n in range(40)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    given = ("finetune", tmp_path / "train.csv", tmp_path / "tuned", "--dev", tmp_path / "dev.csv")
    options = ("--model", tiny_model, "--dendrites", 0, "--json")
    status, output, error = run(*given, *options)
    assert status == 0, error
    assert json.loads(output)["metric"] == "spearman"
    status, _, error = run(*given, *options, "--force", "--scale", 0, 1)
    assert status == 1
    assert "outside 0..1" in error


CANARY = "CANARY of a private text"
_BROKEN = {
    "a.json": f'{{"queries": {{"q": "{CANARY}"',
    "b.json": f'["{CANARY}"]',
    "c.json": json.dumps({"queries": CANARY, "corpus": CANARY, "relevant_docs": CANARY}),
    "d.json": json.dumps({"queries": {"q": 1}, "corpus": {"d": CANARY}, "relevant_docs": {}}),
    "e.json": json.dumps({"queries": {"q": CANARY}, "corpus": {"d": CANARY}, "relevant_docs": {}}),
    "f.json": json.dumps({"metrics": {CANARY: CANARY}}),
    "g.json": f"{CANARY}\n",
    "h.json": json.dumps(
        {"queries": {"q": "x"}, "corpus": {"d": "y"}, "relevant_docs": {"q": CANARY}}
    ),
    "a.csv": f"{CANARY},{CANARY},{CANARY}\n",
    "b.csv": f"{CANARY}\n",
    "c.csv": f'x,"{CANARY}',
    "d.csv": f"{CANARY},,1\n",
    "a.jsonl": f'{{"id": "1", "text": "{CANARY}"',
    "b.jsonl": json.dumps({"id": "1", "text": {"deep": CANARY}}),
    "c.jsonl": json.dumps([CANARY]),
    "a.parquet": CANARY,
    "a.tsv": f"id\ttext\n1\t{CANARY}\t{CANARY}\n",
    "nexus.json": CANARY,
    "state.json": CANARY,
    "training.json": CANARY,
    "nudge.json": CANARY,
}


@pytest.mark.parametrize("name", _BROKEN)
def test_no_error_shows_the_content_of_a_file(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reader of the command line, given a broken file: the message holds nothing of it."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(_BROKEN[name])
    Path("folder").mkdir()
    (Path("folder") / name).write_text(_BROKEN[name])
    MemoryIndex(["d"], np.eye(1, 64, dtype=np.float32)).save("good.parquet")
    model = ("--model", tiny_model)
    commands = [
        ("embed", name, "out.parquet", *model),
        ("finetune", name, "out", "--dendrites", 0, *model),
        ("evaluate", name, name, *model),
        ("evaluate", "good.parquet", name, *model),
        ("evaluate", "good.parquet", name, "--against", name, *model),
        ("report", name, name),
        ("export", "out", "--model", "folder"),
        ("nudge", "apply", "good.parquet", name, *model),
        ("nudge", "status", "folder"),
        ("nudge", "undo", name, "--state", "folder"),
    ]
    for command in commands:
        status, output, error = run(*command)
        assert status in (0, 1), (command, error)
        assert "CANARY" not in output + error, command
        assert "Traceback" not in error


@pytest.mark.parametrize("part", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"])
@pytest.mark.parametrize(
    "content",
    [
        CANARY,
        f'{{"_id": "d1", "text": "{CANARY}"',
        json.dumps({"_id": "d1", "text": [CANARY]}),
        json.dumps({"_id": 1, "text": CANARY, "title": {CANARY: 1}}),
        f"query-id\tcorpus-id\tscore\nq0\td1\t{CANARY}",
        f"{CANARY}\t{CANARY}\n{CANARY}",
    ],
)
def test_no_error_shows_the_content_of_a_dataset(beir: Path, part: str, content: str) -> None:
    """A BEIR folder with one broken file."""
    (beir / "data" / part).write_text(content)
    status, output, error = run("finetune", "data:train", "tuned", "--dendrites", 0)
    assert status == 1
    assert "CANARY" not in output + error, error
