"""The command line, as a person and as a program use it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nexus_integrations.cli import Reporter, app
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index import MemoryIndex

COMMANDS = [*typer.main.get_command(app).commands]


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_command(command: str) -> None:
    """--help ends with status 0 and shows usage and options."""
    status, output, _ = run(command, "--help")
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

    status, output, _ = run("evaluate", vectors, files / "test.json", "--json")
    assert status == 0
    (files / "before.json").write_text(output)
    before = json.loads(output)["metrics"]["ndcg@10"]

    status, output, error = run(
        *("finetune", files / "train.json", tuned, "--dev", files / "dev.json"),
        *("--vectors", vectors, "--dendrites", 0, "--plot", files / "growth.png", "--json"),
        *(("--tensorboard", files / "events") if find_spec("tensorboard") else ()),
    )
    assert status == 0, error
    if find_spec("tensorboard"):
        (events,) = (files / "events").glob("events.out.tfevents.*")
        assert b"dev_score" in events.read_bytes()
    told = json.loads(output)
    assert told["dev_ndcg@10"]["after"] > told["dev_ndcg@10"]["before"] + 0.05
    assert (files / "growth.png").read_bytes().startswith(b"\x89PNG")

    base = MemoryIndex.load(vectors)
    ids = [id_ for batch in base.ids() for id_ in batch]
    status, output, error = run(
        *("nudge", vectors, "--train", files / "train.json", "--dev", files / "dev.json"),
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

    status, output, error = run("nudge", vectors, "--state", state, "--undo")
    assert status == 0, error
    assert np.array_equal(MemoryIndex.load(vectors).vectors(ids), base.vectors(ids))
    status, _, error = run("nudge", vectors, "--state", state, "--undo")
    assert status == 1
    assert "holds no nudge to undo" in error


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
    assert len(told["query_fingerprint"]) == 64
    assert np.load(tmp_path / "v.npy").shape == (3, 384)
    assert Path(told["ids"]).read_text() == '"x"\n"y"\n"3"\n'
    how = ("--backend", "torch", "--precision", "float32")
    status, output, _ = run(*given, *columns, "--skip-bad", *how)
    assert status == 0
    assert "3 documents in" in output
    assert "1 bad rows were left out" in output
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
    # Once more into the same folder, with another encoder than the state there knows.
    status, _, error = run("demo", "-o", tmp_path, "--dendrites", 0, "--seed", 1, "--json")
    assert status == 0, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed", "missing.json", "out.parquet"), "missing.json"),
        (("evaluate", "missing.parquet", "missing.json"), "there is no file missing.parquet"),
        (("nudge", "missing.parquet", "--undo"), "missing.parquet"),
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
    reporter = Reporter(as_json=False)
    reporter.tell("Writing to /data/[old]/[/x]")
    reporter.result({}, "Saved to /data/[old]/[/x].")
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


def test_nudge_wants_train_or_undo(tmp_path: Path) -> None:
    """Neither and both are usage errors."""
    assert run("nudge", tmp_path / "v.parquet")[0] == 2
    assert run("nudge", tmp_path / "v.parquet", "--train", "t.json", "--undo")[0] == 2
