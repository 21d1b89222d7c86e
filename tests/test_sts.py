"""Runs on the STS Benchmark: rows, grids, and a sweep that is stopped and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import train_speed
from benchmarks.record import read_rows
from benchmarks.sts import runs as sts
from benchmarks.sts.__main__ import main
from benchmarks.sts.presets import PRESETS
from nexus_integrations.data import SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.training.config import FinetuneConfig

ROOT = Path(__file__).parent.parent
CONFIG = FinetuneConfig(heads="shared", dendrites=0, epochs=3, loss="cosine", learning_rate=0.05)


def make_part(n: int, seed: int) -> SimilarityDataset:
    """Words of one letter each; equal kinds of letters, a…d and e…h, are similar."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(0, 8, size=(2, n))
    words = [[chr(97 + k) * (1 + k % 3) for k in side] for side in letters.tolist()]
    scores = (letters[0] // 4 == letters[1] // 4).astype(np.float32)
    return SimilarityDataset(sentences1=words[0], sentences2=words[1], scores=scores)


DATA = sts.STSBenchmark(train=make_part(60, 0), dev=make_part(30, 1), test=make_part(30, 2))


def runs(seeds=(0, 1, 2)):
    return ((f"seed {seed}", replace(CONFIG, seed=seed)) for seed in seeds)


def test_the_three_parts_are_read(tmp_path):
    """`.csv` and `.csv.gz` side by side; a missing part is named."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("a,b,5\nc,d,0\n")
    with pytest.raises(FileNotFoundError, match=r"holds neither test\.csv nor test\.csv\.gz"):
        sts.STSBenchmark.read(tmp_path)
    (tmp_path / "test.csv").write_text("a,b,2.5\n")
    assert sts.STSBenchmark.read(tmp_path).test.scores.tolist() == [0.5]


def test_a_row_tells_the_run(tiny):
    """Figures, settings and hashes; test is that of the encoder returned; and no text."""
    result, row = sts.run(tiny, DATA, "a name", CONFIG)
    assert row["dev"] == pytest.approx(result.score, abs=1e-5)
    assert row["test"] == pytest.approx(sts.similarity_score(result.encoder, DATA.test), abs=1e-5)
    assert row["epochs"] == 3
    assert row["bytes_added"] == 4 * row["parameters_added"] == 4 * 16 * 16
    assert row["config"]["learning_rate"] == 0.05
    assert FinetuneConfig(**row["config"]) == CONFIG.resolved("pairs")
    assert "dropout" not in row["config"]  # a frozen backbone has none
    assert json.loads(json.dumps(row)) == row
    assert not {"aaa", "bb"} & set(json.dumps(row).replace('"', " ").split())


def test_the_published_grid():
    """Twelve settings with dendrites, eight epochs each, and six without, of ten, per seed."""
    grid = list(sts.published_grid("frozen", [0, 1]))
    configs = [config for _, config in grid]
    assert len({name for name, _ in grid}) == 18
    assert Counter(config.dendrites for config in configs) == {1: 24, 0: 12}
    assert {c.warmup_epochs + c.epochs for c in configs if c.dendrites} == {8}
    assert {c.epochs for c in configs if not c.dendrites} == {10}
    assert {c.learning_rate for c in configs} == {1e-5, 2e-5, 5e-5}
    assert {c.batch_size for c in configs} == {16, 32}
    # The winner of the published grid is the preset.
    trained = [config for _, config in sts.published_grid("trainable", [0])]
    for preset in ("published", "published-baseline"):
        assert replace(PRESETS[preset], seed=0) in trained


def test_a_sweep_runs_what_its_file_lacks(tiny, tmp_path):
    """A second call trains nothing; a third seed is added; a line cut off is written anew."""
    path = tmp_path / "rows.jsonl"
    first = sts.sweep(tiny, DATA, runs((0, 1)), path)
    content = path.read_bytes()
    again = sts.sweep(tiny, DATA, runs((0, 1)), path)
    assert (again, path.read_bytes()) == (first, content)
    path.write_bytes(content[:-20])
    more = sts.sweep(tiny, DATA, runs(), path)
    assert [row["seed"] for row in read_rows(path)] == [0, 1, 2]
    assert [row["dev"] for row in more[:2]] == [row["dev"] for row in first]
    # Other data, another model or other settings are other runs.
    other = replace(DATA, test=make_part(30, 3))
    assert len(sts.sweep(tiny, other, runs((0,)), path)) == 1
    assert len(read_rows(path)) == 4


def test_a_killed_sweep_goes_on_where_it_stopped(tiny, tiny_model, tmp_path, package_environment):
    """SIGKILL after a row: the rows written stay as they are, the others are added."""
    path = tmp_path / "rows.jsonl"
    program = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_sts import *
from nexus_integrations import DendriticEncoder
sts.sweep(DendriticEncoder.load({str(tiny_model)!r}), DATA, runs(range(500)), Path({str(path)!r}))
"""
    child = subprocess.Popen([sys.executable, "-c", program], env=package_environment)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and child.poll() is None and len(read_rows(path)) < 3:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = read_rows(path)
    assert 3 <= len(before) < 500
    seeds = range(len(before) + 2)
    rows = sts.sweep(tiny, DATA, runs(seeds), path)
    assert rows[: len(before)] == before
    assert [row["seed"] for row in read_rows(path)] == list(seeds)


def test_a_line_that_is_no_row_is_named(tmp_path):
    """A whole line that is not JSON was not written by a sweep."""
    (tmp_path / "rows.jsonl").write_text("not a row\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl holds a line that is no row"):
        read_rows(tmp_path / "rows.jsonl")


# The commands.


@pytest.fixture
def folder(tmp_path):
    """The three parts as files."""
    for name, part in (("train", DATA.train), ("dev", DATA.dev), ("test", DATA.test)):
        rows = zip(part.sentences1, part.sentences2, 5 * part.scores, strict=True)
        lines = [f"{first},{second},{score:g}\n" for first, second, score in rows]
        (tmp_path / f"{name}.csv").write_text("".join(lines))
    return tmp_path


def test_run_saves_an_encoder_and_a_row(folder, tiny_model, capsys):
    """The row printed is the row appended; the folder saved has the test score of the row."""
    asked = ["run", folder, folder / "tuned", "--model", tiny_model]
    kept = ["--preset", "frozen-linear", "--seed", 3, "--rows", folder / "rows.jsonl"]
    main([str(part) for part in (*asked, *kept)])
    (row,) = read_rows(folder / "rows.jsonl")
    assert json.loads(capsys.readouterr().out) == row
    assert (row["name"], row["seed"], row["config"]["seed"]) == ("frozen-linear", 3, 3)
    tuned = DendriticEncoder.load(folder / "tuned")
    assert row["test"] == pytest.approx(sts.similarity_score(tuned, DATA.test), abs=1e-5)


def test_run_records_what_was_averaged(folder, tiny_model):
    """Three runs of two epochs are six, and none of them is what is saved."""
    asked = ["run", folder, folder / "tuned", "--model", tiny_model]
    kept = ["--preset", "trainable-average", "--rows", folder / "rows.jsonl"]
    main([str(part) for part in (*asked, *kept)])
    (row,) = read_rows(folder / "rows.jsonl")
    assert (row["epochs"], row["dendrites"], row["config"]["average"]) == (6, 0, 3)


def test_sweep_prints_a_table_and_draws_a_plot(folder, tiny_model, capsys):
    """Two seeds of one preset are one line of the table; a second call adds no row."""
    asked = ["sweep", folder, folder / "rows.jsonl", "--model", tiny_model, "--seeds", 2]
    asked += ["--presets", "frozen-linear", "--plot", folder / "sts.png"]
    for _ in range(2):
        main([str(part) for part in asked])
        assert capsys.readouterr().out.count("| frozen-linear |") == 1
        assert len(read_rows(folder / "rows.jsonl")) == 2
    assert (folder / "sts.png").is_file()


def test_an_unknown_preset_is_named():
    """The message lists the presets."""
    with pytest.raises(ValueError, match="no preset is called 'none': choose from trainable, "):
        list(sts.preset_runs(["none"], [0]))


def test_recorded_rows_are_read_and_written_as_a_page(tmp_path):
    """The rows beside the documentation give the page, with a plot."""
    for file in (ROOT / "docs" / "results").glob("sts-*.jsonl"):
        shutil.copy(file, tmp_path)
    main(["report", "--results", str(tmp_path)])
    text = (tmp_path / "sts.md").read_text()
    assert text == (ROOT / "docs" / "results" / "sts.md").read_text()
    assert (tmp_path / "sts.png").is_file()


def test_the_page_of_an_epochs_speed_by_hand():
    """Ours, 10 s before theirs and 14 s after, against 36 s are 3 times as fast."""
    machine = {"cores": 2, "torch": "2"}
    rows = [
        {
            "pairs": 5749,
            "batch": 32,
            "epochs": 1,
            "seed": seed,
            "machine": machine,
            "before": {"seconds": 10.0, "dev": 0.9, "test": 0.8},
            "theirs": {"seconds": theirs, "dev": 0.901, "test": 0.798},
            "ours": {"seconds": 14.0, "dev": 0.9, "test": 0.8},
        }
        for seed, theirs in ((0, 36.0), (1, 60.0))
    ]
    page = train_speed.page(rows, "speed")
    assert "| 0 | 10, 14 | 36 | 3.00 | -0.0010 | +0.0020 |" in page
    assert "| mean |  |  | 4.00 | -0.0010 (-0.0010 to -0.0010) | +0.0020 (" in page
    assert "5,749 train pairs, batches of 32" in page
