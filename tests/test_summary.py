"""Means over seeds, paired gains, tables and plots of recorded rows."""

import pytest

from benchmarks.mean import Mean
from benchmarks.sts.page import page
from benchmarks.sts.summary import figures, gains, plot_sweep


def row(name, seed, dendrites, dev, test=0.5, **config):
    return {
        "name": name,
        "seed": seed,
        "dev": dev,
        "test": test,
        "epochs": 8,
        "best_epoch": 4,
        "dendrites": dendrites,
        "parameters_added": 1000,
        "bytes_added": 4000,
        "seconds": 2.0,
        "model": "m",
        "data": "d",
        "machine": {"processor": "x", "cores": 2, "threads": 1, "torch": "2"},
        "config": {
            "seed": seed,
            "dendrites": dendrites,
            "epochs": 4 + dendrites,
            "warmup_epochs": None,
            "tries": 1,
            "learning_rate": 0.1,
            **config,
        },
    }


ROWS = [
    row("grown", 0, 1, 0.5),
    row("plain", 0, 0, 0.4),
    row("grown", 1, 1, 0.7),
    row("plain", 1, 0, 0.4),
    row("other", 0, 1, 0.9, learning_rate=0.2),
]


def test_a_mean_and_its_interval_by_hand():
    """Of .1 and .3: mean .2, s = .1·√2, s/√2 = .1, t(.975, 1) = 12.7062."""
    mean = Mean.of([0.1, 0.3])
    assert mean.mean == pytest.approx(0.2)
    assert mean.interval == pytest.approx((0.2 - 1.27062, 0.2 + 1.27062), abs=1e-5)
    assert str(mean) == "0.2000 (-1.0706 to 1.4706)"
    assert mean.signed == "+0.2000 (-1.0706 to +1.4706)"


def test_a_single_seed_has_no_interval():
    """Nothing is said about what one run does not show."""
    assert (Mean.of([0.25]).interval, str(Mean.of([0.25]))) == (None, "0.2500")


def test_gains_are_paired_by_seed_and_settings():
    """.5 − .4 and .7 − .4; the recipe of another learning rate has no baseline."""
    ((name, dev, test),) = gains(ROWS)
    assert (name, dev.count) == ("grown", 2)
    assert dev.mean == pytest.approx(0.2)
    assert (test.mean, test.interval) == (0.0, (0.0, 0.0))


def test_the_table_has_a_line_per_recipe():
    """Averages over the seeds of each."""
    header, (grown, plain, other) = figures(ROWS)
    assert (grown[:2], plain[:2], other[:2]) == (["grown", "2"], ["plain", "2"], ["other", "1"])
    assert grown[header.index("dev Spearman")].startswith("0.6000 (")
    assert grown[header.index("bytes added")] == "4,000"


def test_the_page_says_what_was_not_run(tmp_path):
    """Without rows of the published preset the page says so, beside the published figure."""
    text = page(ROWS, ["sts-x.jsonl"])
    assert "| published | 0.8917 | not run yet | not run yet | 0 |" in text
    assert "| grown | +0.2000 (" in text
    plot_sweep(ROWS, tmp_path / "sts.png")
    assert (tmp_path / "sts.png").read_bytes()[:4] == b"\x89PNG"
