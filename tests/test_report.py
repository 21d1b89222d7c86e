"""The report: what it says, what it must not hold, and how it behaves in a real browser."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nexus_integrations.cli import app
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import Comparison, Evaluation, compare
from nexus_integrations.index import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, NudgeResult, StateFolder, nudge_index
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.protocols import Hits
from nexus_integrations.report import Moves, Report, plots
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.result import Epoch, FinetuneResult

# As text, as markup that runs, and as the end of the script element that holds the data.
EVIL = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'&\u202e'
FINGERPRINT = "ab" * 32


def evaluation(
    values: Sequence[float],
    found: Sequence[str] | None = None,
    *,
    queries: Sequence[str] = ("q1", "q2", "q3", "q10"),
    metrics: Sequence[str] = ("ndcg@10", "mrr@10"),
    relevant: Sequence[Sequence[str]] = (("a",), ("b",), ("c",), ("a", "d")),
    sha: str = "",
) -> Evaluation:
    """One value per query for the first metric, half of it for the others; lists as "abc"."""
    per_query = {
        metric: np.array(values) / (1 if number == 0 else 2)
        for number, metric in enumerate(metrics)
    }
    hits = None
    if found is not None:
        rows = [1 - 0.1 * np.arange(len(ids)) for ids in found]
        hits = Hits([list(ids) for ids in found], np.array(rows, dtype=np.float32))
    return Evaluation(
        metrics={metric: float(column.mean()) for metric, column in per_query.items()},
        intervals=dict.fromkeys(metrics, (0.1, 0.9)),
        confidence=0.95,
        query_ids=list(queries),
        per_query=per_query,
        hits=hits,
        relevant=[list(ids) for ids in relevant],
        documents=4,
        fingerprint=FINGERPRINT,
        questions_sha256=sha,
    )


# q1 gains .5, q2 loses .25, q3 stays, q10 gains .25; a moves from rank 3 to rank 1 for q1.
BEFORE = evaluation([0.5, 0.75, 0.5, 0.25], ["bca", "bac", "abd", "cba"])
AFTER = evaluation([1.0, 0.5, 0.5, 0.5], ["acb", "abc", "abd", "dcb"])
STAGES = {"before": BEFORE, "after": AFTER}
HISTORY = [
    Epoch(epoch=1, dendrites=0, loss=2.0, score=0.5, parameters=4, seconds=0.1),
    Epoch(epoch=2, dendrites=1, loss=1.5, score=0.7, parameters=8, seconds=0.2),
]
TRAINING = FinetuneResult(
    config=FinetuneConfig(heads="query"),
    repeated=0,
    dendrites=1,
    metric="ndcg@10",
    baseline_score=0.4,
    score=0.7,
    gamma=0.02,
    dev_source="given",
    dropped=3,
    seconds=4.2,
    embedding_seconds=1.0,
    fingerprint=FINGERPRINT,
    document_fingerprint="cd" * 32,
    history=HISTORY,
)
NUDGE = NudgeResult(
    gamma=0.1,
    variant="n",
    metric="ndcg@10",
    chosen_by="dev",
    queries=3,
    touched=2,
    moved=2,
    gain=0.02,
    interval=(-0.01, 0.05),
    written=True,
    approximate=False,
    fingerprint=FINGERPRINT,
    curve={0.0: 0.5, 0.1: 0.6, 0.3: 0.55},
)
DATASET = RetrievalDataset(
    queries={"q1": "who signs?", "q2": "what leave?", "q3": "which key?", "q10": EVIL},
    corpus={"a": "The matron signs.", "b": "Ten days.", "c": f"passage {EVIL}", "d": "Key four."},
    relevant_docs={"q1": ["a"], "q2": ["b"], "q3": ["c"], "q10": ["a", "d"]},
)


def state(**changes: Any) -> NudgeState:
    """Two documents of unit length, answering two questions and one, before a nudge with γ = .2."""
    given: dict[str, Any] = {
        "phase": "applied",
        "variant": "n",
        "gamma": 0.2,
        "metric": "cosine",
        "fingerprint": FINGERPRINT,
        "document_ids": ["east", EVIL],
        "content_sha256": ["", ""],
        "query_ids": ["x", "y", "z"],
        "answers": [[0], [0], [1]],
        "base": np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32),
        "queries": np.array([[0.6, 0.8, 0], [0.6, 0.8, 0], [0, 0.8, 0.6]], dtype=np.float32),
    }
    return NudgeState(**given | changes)


def whole_report() -> Report:
    """A report with everything in it."""
    comparison = Comparison(
        differences={"ndcg@10": 0.1, "mrr@10": 0.1},
        intervals={"ndcg@10": (0.0, 0.2), "mrr@10": (0.0, 0.2)},
        confidence=0.95,
        wins={"ndcg@10": 2, "mrr@10": 2},
        losses={"ndcg@10": 1, "mrr@10": 1},
        ties={"ndcg@10": 1, "mrr@10": 1},
    )
    return Report(
        stages={"before": BEFORE, "middle": BEFORE, "after": AFTER},
        training=TRAINING,
        nudge=NUDGE,
        moves=Moves.of(state(), MemoryIndex(["n"], np.array([[0, 0, 1]], dtype=np.float32))),
        learning_curve={25: comparison, 50: comparison},
        artefacts={"encoder/query_head.safetensors": "ef" * 32},
        dataset=DATASET,
    )


def written(report: Report, folder: Path, **options: bool) -> str:
    report.save(folder / "report.html", **options)
    return (folder / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    """What the page's table reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


# What it says


def test_the_finding_is_the_headline(tmp_path: Path) -> None:
    """Means .5 and .625: a rise, of two better, one worse, one equal."""
    page = written(Report.of(STAGES), tmp_path)
    text = " ".join(re.sub(r"<[^>]+>", "", page[page.index("<h1>") :]).split())
    # No reciprocal rank is 1 before or after: half of a value that is at most 1.
    assert text.startswith(
        "nDCG@10 rose from 0.500 to 0.625 The right passage came first for 0 of 4 questions, "
        "before for 0. The change in nDCG@10 is +0.125"
    )
    assert "includes zero: the choice of questions alone could explain the change" in text
    assert "nDCG@k looks at the first k documents" in text
    assert "Of 4 questions, 2 got better, 1 worse, 1 stayed." in text


@pytest.mark.parametrize(
    ("values", "headline", "verdict"),
    [
        ([0.4, 0.6, 0.4, 0.15], "fell from", "does not explain this loss"),
        ([0.6, 0.9, 0.6, 0.35], "rose from", "does not explain this gain"),
        ([0.5, 0.75, 0.5, 0.25], "stayed at 0.500", "interval includes zero"),
    ],
)
def test_the_verdict_follows_the_interval(
    values: list[float], headline: str, verdict: str, tmp_path: Path
) -> None:
    """All worse, all better, all equal: the interval of the change tells which."""
    page = written(Report.of({"before": BEFORE, "after": evaluation(values)}), tmp_path)
    assert headline in page
    assert verdict in page


def test_the_sections_tell_what_was_done(tmp_path: Path) -> None:
    """Training, nudge, map, learning curve and hashes, each with its figures."""
    page = " ".join(written(whole_report(), tmp_path).split())
    assert "2 epochs in 4 s" in page
    assert "1 dendrite grew and was kept" in page
    assert "(given) went from 0.400 to 0.700" in page
    assert "3 questions without a relevant passage were left out" in page
    assert "NUDGE-N with γ = 0.1, chosen on the dev set" in page
    assert "gained +0.020 in nDCG@10 (−0.010 to +0.050)" in page
    assert " ".join(["efefefef"] * 8) in page
    assert page.count('role="img"') == 6


def test_the_learning_curve_in_figures(tmp_path: Path) -> None:
    """One line per number of questions, rising; before 0, 25 questions lose .0625, 50 gain .125."""
    worse = evaluation([0.25, 0.75, 0.5, 0.25])
    report = Report.of(
        STAGES, learning_curve={50: compare(BEFORE, AFTER), 25: compare(BEFORE, worse)}
    )
    page = " ".join(written(report, tmp_path).split())
    section = page[page.index('<section id="learning">') : page.index('<section id="prints">')]
    lines = re.findall(r"<tr><td>([\d,]+)</td><td>(.*?)</td><td>(.*?)</td></tr>", section)
    assert [line[:2] for line in lines] == [("25", "−0.062"), ("50", "+0.125")]
    assert all(" to " in line[2] for line in lines)
    assert section.count('role="img"') == 1


def test_sentence_pairs_are_judged_by_spearman(tmp_path: Path) -> None:
    """Heads that were trained on scored pairs have no nDCG."""
    report = replace(whole_report(), training=replace(TRAINING, metric="spearman", gamma=None))
    page = " ".join(written(report, tmp_path).split())
    assert "Spearman’s ρ of the dev set (given) went from 0.400 to 0.700" in page
    assert "nDCG@10 of the dev set (given)" in written(whole_report(), tmp_path)


def test_a_nudge_that_was_not_kept(tmp_path: Path) -> None:
    """The report says so, and has nothing to map."""
    record = replace(NUDGE, written=False, moved=0)
    page = written(Report(stages=STAGES, nudge=record), tmp_path)
    assert "A nudge was tried and not kept" in page
    assert 'id="moves"' not in page


def test_a_nudge_that_moved_nothing(tmp_path: Path) -> None:
    """γ = 0 is in place and moves no document: the section says that in words."""
    still = Moves.of(state(gamma=0.0))
    page = written(Report(stages=STAGES, moves=still), tmp_path)
    assert "No document moved." in page


def test_evaluations_of_an_earlier_version(tmp_path: Path) -> None:
    """Without ranked lists, hashes and counts the rest is told."""
    old = {
        name: replace(stage, hits=None, relevant=[], documents=0, fingerprint="")
        for name, stage in STAGES.items()
    }
    page = written(Report(stages=old, training=TRAINING), tmp_path)
    assert data_of(page)["questions"][0]["lists"] == [None, None]


# What it must not hold


def test_no_text_unless_asked(tmp_path: Path) -> None:
    """Ids, numbers and hashes alone; texts only with include_text."""
    report = Report.of(STAGES, dataset=DATASET)
    page = written(report, tmp_path)
    assert "signs" not in page
    assert "Ten days" not in page
    page = written(report, tmp_path, include_text=True)
    assert "The matron signs." in page
    assert "who signs?" in page


def test_the_page_names_no_address_and_admits_one_script(tmp_path: Path) -> None:
    """No URL but the names of XML languages; the policy holds the script's own hash."""
    page = written(whole_report(), tmp_path, include_text=True)
    assert set(re.findall(r"https?://[^\s\"')]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy[1].startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    assert page.count("<script>") == 1


def test_surrogates_are_written(tmp_path: Path) -> None:
    """A lone surrogate in a text or an id does not stop the report."""
    queries = ["q1", "q2", "q3", "q\ud83d"]
    stages = {
        name: evaluation(values, ["abc"] * 4, queries=queries)
        for name, values in (("before", [0, 0, 0, 0]), ("after", [1, 1, 1, 0.5]))
    }
    assert "q?" in written(Report.of(stages), tmp_path)


# Bad input


def test_two_stages_are_needed() -> None:
    """None and one are refused."""
    for stages in ({}, {"before": BEFORE}):
        with pytest.raises(ValueError, match="at least two evaluations"):
            Report.of(stages)


def test_an_empty_run_is_refused() -> None:
    """Evaluations without a question say nothing."""
    empty = replace(BEFORE, query_ids=[], per_query={"ndcg@10": np.zeros(0)})
    with pytest.raises(ValueError, match="hold no question"):
        Report.of({"before": empty, "after": empty})


@pytest.mark.parametrize(
    "other",
    [
        evaluation([0] * 4, queries=["q1", "q2", "q3", "q4"]),
        evaluation([0] * 4, metrics=["ndcg@10"]),
        evaluation([0] * 4, sha="12" * 32),
    ],
    ids=["queries", "metrics", "hash"],
)
def test_runs_that_cannot_be_compared_are_refused(other: Evaluation) -> None:
    """Other questions, other metrics, or the same ids with other answers."""
    before = replace(BEFORE, questions_sha256="34" * 32)
    with pytest.raises(ValueError, match="'before' and 'after' are not evaluations of the same"):
        Report.of({"before": before, "after": other})


def test_records_of_another_encoder_are_refused() -> None:
    """Heads or a nudge that no stage used do not explain its figures."""
    with pytest.raises(ValueError, match="the heads belong to an encoder that none"):
        Report(stages=STAGES, training=replace(TRAINING, fingerprint="00" * 32))
    with pytest.raises(ValueError, match="the nudge belong to an encoder that none"):
        Report(stages=STAGES, nudge=replace(NUDGE, fingerprint="00" * 32))


def test_texts_need_their_dataset(tmp_path: Path) -> None:
    """Without a dataset, or with another one, there is no text to show."""
    with pytest.raises(ValueError, match="include_text needs the dataset"):
        Report.of(STAGES).save(tmp_path / "r.html", include_text=True)
    other = DATASET.subset(["q1", "q2", "q3"])
    with pytest.raises(ValueError, match=r"lacks question 'q10' \(1 such"):
        Report.of(STAGES, dataset=other).save(tmp_path / "r.html", include_text=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """The error names the report; no draft is left."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the report cannot be written .*report\.html"):
        Report.of(STAGES).save(tmp_path / "file" / "report.html")
    if Path("/sys/kernel").is_dir():  # read-only for root as well
        with pytest.raises(OSError, match="the report cannot be written"):
            Report.of(STAGES).save("/sys/kernel/report.html")


def test_a_hundred_thousand_questions_are_aggregated(tmp_path: Path) -> None:
    """At most 2,000 rows, gains and losses by turns; the file stays far below 10 MB."""
    count = 100_000
    rng = np.random.default_rng(0)
    ids = [f"question-{number:06}" for number in range(count)]
    texts = {id_: f"{id_} {'x' * 3_000}" for id_ in ids}
    corpus = {f"document-{number}": "y" * 5_000 for number in range(5_000)}
    names = list(corpus)
    stages = {}
    for name, lift in (("before", 0.0), ("after", 0.05)):
        found = rng.integers(0, len(names), (1_000, 10)).tolist() * (count // 1_000)
        stages[name] = replace(
            evaluation(
                np.clip(rng.random(count).round(1) + lift, 0, 1).tolist(),
                queries=ids,
                metrics=["ndcg@10"],
                relevant=[["document-1"]] * count,
            ),
            hits=Hits(
                [[names[row] for row in rows] for rows in found],
                np.ones((count, 10), dtype=np.float32),
            ),
        )
    dataset = RetrievalDataset(
        queries=texts, corpus=corpus, relevant_docs={id_: ["document-1"] for id_ in ids}
    )
    report = Report.of(stages, dataset=dataset)
    page = written(report, tmp_path)
    assert len(page) < 2 * 2**20
    rows = data_of(page)["questions"]
    assert len(rows) == 2_000
    changes = [row["values"][1][0] - row["values"][0][0] for row in rows]
    assert sum(change > 0 for change in changes) == 1_000
    assert min(abs(change) for change in changes) > 0.5
    assert "Of 100,000 questions the 2,000 that changed most are listed" in " ".join(page.split())
    page = written(report, tmp_path, include_text=True)
    assert len(page) < 7 * 2**20
    assert 300 < len(data_of(page)["questions"]) < 2_000


# Records and the map


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    """What the commands leave is what the report reads; damaged files are named."""
    NUDGE.save(tmp_path / "nudge.json")
    assert NudgeResult.of_folder(tmp_path) == NUDGE
    for content in ("{", "[]", '{"gamma": 1}'):
        (tmp_path / "nudge.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"nudge\.json is (not valid JSON|no saved NudgeResult)"
        ):
            NudgeResult.of_folder(tmp_path)


def test_the_map_by_hand() -> None:
    """Base vectors (1, 0, 0) and (0, 1, 0) differ along one axis: half of √2 to either side.

    c = max(1 − γ/2, cos) = max(.9, .6) for east and max(.9, .8) for the other: both move as far as
    γ allows, √.2.
    """
    moves = Moves.of(state())
    np.testing.assert_allclose(moves.distances, np.sqrt([0.2, 0.2]), rtol=1e-5)
    assert moves.questions == [2, 1]
    assert moves.document_ids == ["east", EVIL]
    assert moves.share == pytest.approx(1)
    np.testing.assert_allclose(np.abs(moves.base[:, 0]), np.sqrt([0.5, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(moves.base[:, 1], 0, atol=1e-6)
    # East turns within the plane of x and y: by (c − 1, s) = (−.1, √.19), along (1, −1)/√2.
    along = abs(moves.moved[0, 0] - moves.base[0, 0])
    assert along == pytest.approx((0.1 + np.sqrt(0.19)) / np.sqrt(2), rel=1e-5)
    assert moves.stretch == 1  # as far as they are seen already


def test_the_background_is_a_sample_of_what_stayed() -> None:
    """Documents of the state are not in it, and no more than 1,500 are."""
    vectors = np.random.default_rng(0).normal(size=(3_000, 3)).astype(np.float32)
    index = MemoryIndex(["east", EVIL, *map(str, range(2_998))], vectors)
    moves = Moves.of(state(), index)
    assert moves.background.shape == (1_500, 2)
    again = Moves.of(state(), index)
    assert np.array_equal(moves.background, again.background)
    assert len(Moves.of(state()).background) == 0
    few = MemoryIndex(["east", EVIL, "other"], vectors[:3])
    assert len(Moves.of(state(), few).background) == 1


def test_of_many_moves_some_are_drawn() -> None:
    """The hundred furthest and three hundred others, each once."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1_000, 8)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    queries = base + rng.normal(scale=0.05, size=base.shape).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    names = [str(row) for row in range(1_000)]
    moves = Moves.of(
        state(
            document_ids=names,
            content_sha256=[""] * 1_000,
            query_ids=names,
            answers=[[row] for row in range(1_000)],
            base=base,
            queries=queries,
        )
    )
    assert len(moves.document_ids) == 1_000
    assert (np.diff(moves.distances) <= 0).all()
    assert moves.drawn[:100] == list(range(100))
    assert len(set(moves.drawn)) == 400


def test_a_state_tells_what_is_nudged_now() -> None:
    """The record's curve counts as long as γ is the one that it chose."""
    told = NudgeResult.of_state(state(), replace(NUDGE, gamma=0.2))
    assert (told.gamma, told.queries, told.touched, told.moved) == (0.2, 3, 2, 2)
    assert told.curve == NUDGE.curve
    assert NudgeResult.of_state(state(), NUDGE).curve == {}


def test_a_report_of_a_real_nudge(toy: Any, tmp_path: Path) -> None:
    """From NudgeResult and from the state folder alike; after an undo there is nothing to tell."""
    encoder = toy({"to the east": (3, 1), "to the north": (1, 3)})
    index = MemoryIndex(["e", "n"], np.eye(2, dtype=np.float32))
    train = RetrievalDataset(
        queries={"q1": "to the east", "q2": "to the north"},
        corpus={"e": "east", "n": "north"},
        relevant_docs={"q1": ["e"], "q2": ["n"]},
    )
    nudged = nudge_index(index, encoder, train, None, NudgeConfig(gamma=0.01), state_dir=tmp_path)
    stages = {
        name: replace(stage, fingerprint=encoder.fingerprint) for name, stage in STAGES.items()
    }
    report = Report.of(stages, nudged=nudged, index=index, folders=[tmp_path])
    assert report.nudge is not None
    assert (report.nudge.moved, report.nudge.chosen_by) == (2, "fixed")
    assert f"{tmp_path.name}/state.json" in report.artefacts
    assert not any("lock" in name for name in report.artefacts)
    from_folder = Report.of(stages, nudged=StateFolder(tmp_path))
    assert from_folder.moves is not None
    assert from_folder.moves.document_ids == ["e", "n"]
    nudged.undo(index)
    with pytest.raises(ValueError, match="holds no nudge"):
        Report.of(stages, nudged=StateFolder(tmp_path))


# Figures


def test_an_inline_figure_stays_within_its_page() -> None:
    """No style that reaches out, no id twice, colours of the page, $ as it is."""
    stages = {"cost $5 $": BEFORE, "after": AFTER}
    labels = {"ndcg@10": "nDCG@10 $x$", "mrr@10": "MRR@10"}
    texts = [
        plots.inline_svg(plots.stages_figure(stages, labels), "one", f"label {EVIL}"),
        plots.inline_svg(plots.changes_figure(np.array([0.5, 0, -0.5]), "x"), "two", "label"),
        plots.inline_svg(plots.gamma_figure({0.0: 0.5}, 0.0, "x"), "three", "label"),
    ]
    ids = [id_ for text in texts for id_ in re.findall(r'\bid="([^"]+)"', text)]
    assert len(ids) == len(set(ids))
    for text in texts:
        assert "<style" not in text
        assert "<metadata" not in text
        assert "var(--blue)" in text
    assert "nDCG@10 $x$" in texts[0]
    assert "<script" not in texts[0]


def test_arrows_have_titles() -> None:
    """What a pointer rests on tells its document's id, escaped."""
    spots = np.array([[0, 0], [1, 1]], dtype=np.float32)
    figure = plots.map_figure(spots, spots + 0.1, spots + 0.5)
    text = plots.inline_svg(figure, "map", "a map", {"move-1": f"second {EVIL}"})
    assert text.count("<title>") == 1
    assert "second &lt;/script&gt;" in text


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots_are_written_as_files(suffix: str, tmp_path: Path) -> None:
    """The two pictures of a run by themselves; nothing to draw is an error."""
    plots.plot_growth(HISTORY, 0.4, tmp_path / f"growth{suffix}")
    plots.plot_gamma(NUDGE.curve, NUDGE.gamma, "ndcg@10", tmp_path / f"gamma{suffix}")
    assert all(
        (tmp_path / f"{name}{suffix}").stat().st_size > 5_000 for name in ("growth", "gamma")
    )
    with pytest.raises(ValueError, match="history is empty"):
        plots.plot_growth([], 0.4, tmp_path / "none.png")
    with pytest.raises(ValueError, match="curve is empty"):
        plots.plot_gamma({}, 0.1, "ndcg@10", tmp_path / "none.png")


# The command


def run(*arguments: object) -> tuple[int, str, str]:
    """Run `nexus` in this process; return status, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr or repr(result.exception)


@pytest.mark.filterwarnings("ignore:.*longer than 32 tokens:UserWarning")
def test_the_command_reads_what_the_others_write(
    tiny_model: Path, clinic: tuple[RetrievalDataset, ...], tmp_path: Path
) -> None:
    """embed, evaluate, finetune, nudge, evaluate, report: every section is there."""
    for name, part in zip(("train", "dev", "test"), clinic, strict=True):
        part.to_json(tmp_path / f"{name}.json")
    vectors, tuned, kept = (tmp_path / name for name in ("v.parquet", "tuned", "state"))
    train, dev, test = (tmp_path / f"{name}.json" for name in ("train", "dev", "test"))
    status, _, error = run("embed", test, vectors, "--model", tiny_model)
    assert status == 0, error
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    status, _, error = run("evaluate", vectors, test, "--model", tiny_model, "-o", before)
    assert status == 0, error
    status, _, error = run(
        *("finetune", train, tuned, "--dev", dev, "--model", tiny_model),
        *("--vectors", vectors, "--dendrites", 0),
    )
    assert status == 0, error
    status, _, error = run(
        *("nudge", "apply", vectors, train, "--dev", dev, "--model", tuned),
        *("--state", kept, "--keep", "always"),
    )
    assert status == 0, error
    status, output, error = run("evaluate", vectors, test, "--model", tuned, "-o", after)
    assert status == 0, error
    page = tmp_path / "page.html"
    given = ("report", before, after, "-o", page, "--force")
    status, output, error = run(
        *given, "--model", tuned, "--state", kept, "--vectors", vectors, "--json"
    )
    assert status == 0, error
    assert json.loads(output)["questions"] == 159  # of the comparison
    text = page.read_text(encoding="utf-8")
    for part in ("metrics", "questions", "steps", "moves", "prints"):
        assert f'id="{part}"' in text
    assert "Heads were trained" in text
    assert "Stored vectors were nudged" in text
    assert "tuned/query_head.safetensors" in text
    assert len(data_of(text)["questions"][0]["lists"][0][0]) == 10
    assert not any(question in text for question in clinic[2].queries.values())
    status, _, error = run(*given, "--include-text", "--dataset", test)
    assert status == 0, error
    assert json.dumps(next(iter(clinic[2].queries.values())))[1:20] in page.read_text()

    # The nudge undone, the tuned encoder exchanged: both would tell what is not so.
    assert run("nudge", "undo", vectors, "--state", kept)[0] == 0
    status, _, error = run(*given, "--state", kept)
    assert status == 1
    assert "holds no nudge" in error.replace("\n", " ")


def test_the_command_explains_bad_input(tmp_path: Path) -> None:
    """Status 1 with a reason for what is wrong in files, 2 for what was typed wrongly."""
    (tmp_path / "other.json").write_text('{"metrics": ["CANARY"]}')
    status, _, error = run("report", tmp_path / "other.json", tmp_path / "other.json")
    assert status == 1
    assert "is no saved Evaluation: its field 'metrics'" in error.replace("\n", " ")
    assert "CANARY" not in error
    assert run("report")[0] == 2
    assert run("report", "a.json", "b.json", "--include-texts")[0] == 2
    assert run("report", "a.json", "b.json", "--include-text")[0] == 2


# In a browser


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where none is installed."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: make browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


class Opened:
    """A report in a browser, with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.told: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("dialog", lambda dialog: self.told.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def column(self, number: int) -> list[str]:
        cells = self.page.locator(f"#rows .row td:nth-child({number})")
        return [text.strip() for text in cells.all_inner_texts()]

    def fits(self) -> bool:
        """Whether nothing must be scrolled to the side."""
        wide: bool = self.page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
        return wide


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, and with hostile texts."""
    folder = tmp_path_factory.mktemp("report")
    whole_report().save(folder / "report.html", include_text=True)
    return folder / "report.html"


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    report = Opened(browser, path)
    yield report
    report.context.close()


def test_it_loads_in_silence_and_alone(opened: Opened, path: Path) -> None:
    """No message, no error, no request but that for the file; and none could be made."""
    opened.page.locator("#rows .row").first.click()
    opened.page.wait_for_timeout(200)
    assert opened.told == []
    assert opened.requests == [path.as_uri()]
    for attempt in (
        "fetch('http://127.0.0.1:9/')",
        "new Promise((done, fail) => { const image = new Image(); image.onerror = fail; "
        "image.src = 'http://127.0.0.1:9/x.png'; })",
    ):
        refused = opened.page.evaluate(f"{attempt}.then(() => 'made', () => 'refused')")
        assert refused == "refused"
    assert all("Content Security Policy" in line for line in opened.told)
    assert len(opened.told) >= 2


def test_hostile_ids_and_texts_stay_text(browser: Any, tmp_path: Path) -> None:
    """In ids, texts, names of stages and files: shown as written, run nowhere."""
    queries = [EVIL, "q2", "q3", "q4"]
    stages = {
        EVIL: evaluation([0, 0, 0, 0], [[EVIL, "b"]] * 4, queries=queries, relevant=[[EVIL]] * 4),
        "after": evaluation([1, 0, 0, 0], [["b", EVIL]] * 4, queries=queries, relevant=[["b"]] * 4),
    }
    dataset = RetrievalDataset(
        queries=dict.fromkeys(queries, EVIL),
        corpus={EVIL: EVIL, "b": EVIL},
        relevant_docs={query: [EVIL] for query in queries},
    )
    report = Report(
        stages=stages, dataset=dataset, moves=Moves.of(state()), artefacts={EVIL: "00" * 32}
    )
    report.save(tmp_path / "report.html", include_text=True)
    opened = Opened(browser, tmp_path / "report.html")
    opened.page.locator("#rows .row").first.click()
    assert opened.told == []
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    assert opened.page.locator("#rows .row .id").first.text_content() == EVIL
    assert opened.page.locator(".opened li .text").first.text_content() == EVIL
    assert opened.page.locator(".furthest .name").nth(1).text_content() == EVIL


def test_rows_are_sorted_by_any_column(opened: Opened) -> None:
    """At first by the change, falling; a second click turns the order; ids sort as numbers do."""
    ids = [text.split("\n")[0] for text in opened.column(1)]
    assert ids == ["q1", "q10", "q3", "q2"]
    assert opened.column(4) == ["+0.500", "+0.250", "0.000", "−0.250"]
    head = opened.page.locator("th[data-key=change]")
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert opened.column(4) == ["−0.250", "0.000", "+0.250", "+0.500"]
    assert head.get_attribute("aria-sort") == "ascending"
    opened.page.locator("th[data-key=id] button").click()
    assert [text.split("\n")[0] for text in opened.column(1)] == ["q1", "q2", "q3", "q10"]
    assert head.get_attribute("aria-sort") is None
    opened.page.locator("th[data-key=before] button").click()
    assert opened.column(2) == ["0.750", "0.500", "0.500", "0.250"]


def test_rows_are_filtered(opened: Opened) -> None:
    """By outcome, by id or text, by both; another metric has values of its own."""
    page = opened.page
    page.get_by_role("radio", name="Worse").check(force=True)
    assert opened.column(4) == ["−0.250"]
    page.get_by_role("radio", name="All").check(force=True)
    page.get_by_label("Find").fill("WHO SIGNS")
    assert [text.split("\n")[0] for text in opened.column(1)] == ["q1"]
    page.get_by_role("radio", name="Equal").check(force=True)
    assert opened.column(1) == []
    assert page.locator("#shown").inner_text() == "No question matches."
    page.get_by_role("radio", name="All").check(force=True)
    page.get_by_label("Find").fill("")
    page.locator("#metric").select_option(label="MRR@10")
    assert opened.column(4) == ["+0.250", "+0.125", "0.000", "−0.125"]
    assert page.locator("[data-count=better]").inner_text() == "2"


def test_a_row_opens_its_ranked_lists(opened: Opened) -> None:
    """q1 found b, c, a, then a, c, b: a rose by two, b fell by two. By keyboard too."""
    page = opened.page
    button = page.locator("#rows .row button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    before, after = page.locator(".opened ol").all()
    rows = [
        [" ".join(text.split()) for text in side.locator("li").all_inner_texts()]
        for side in (before, after)
    ]
    assert rows[0][2] == "3 a answers 0.800 The matron signs."
    assert rows[1][0] == "1 a answers · ▲ 2 1.000 The matron signs."
    assert rows[1][2].startswith("3 b ▼ 2 0.800")
    page.keyboard.press("Enter")
    assert page.locator(".opened").count() == 0
    # q10 is answered by a and d: the last list holds d alone.
    page.locator("#rows .row").nth(1).click()
    notes = [" ".join(text.split()) for text in page.locator(".opened p").all_inner_texts()]
    assert notes == ["Answers not found here: d", "Answers not found here: a"]


def test_more_rows_on_demand(browser: Any, tmp_path: Path) -> None:
    """Of 120 questions fifty are shown, then a hundred, then all."""
    ids = [f"q{number}" for number in range(120)]
    stages = {
        name: evaluation(values, queries=ids, relevant=[["a"]] * 120)
        for name, values in (("before", [0.0] * 120), ("after", np.linspace(-1, 1, 120).tolist()))
    }
    Report.of(stages).save(tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html")
    for count in (50, 100, 120):
        assert len(opened.column(1)) == count
        if count < 120:
            opened.page.locator("#more").click()
    assert opened.page.locator("#more").is_hidden()


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it, of "rgb(…)"."""
    channels = np.array([float(part) for part in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_both_readable(scheme: str, browser: Any, path: Path) -> None:
    """Text has a contrast of 4.5 to 1 and figures of 3 to 1 against the ground."""
    opened = Opened(browser, path, color_scheme=scheme)
    colors = opened.page.evaluate(
        """() => Object.fromEntries(
          ["paper", "raised", "ink", "grey", "before", "blue", "orange"].map((name) => {
            const probe = document.createElement("i");
            probe.style.color = `var(--${name})`;
            document.body.append(probe);
            return [name, getComputedStyle(probe).color];
        }))"""
    )
    light = luminance(colors["paper"])
    assert (light > 0.9) == (scheme == "light")
    for ground in ("paper", "raised"):
        for name, least in (
            ("ink", 7),
            ("grey", 4.5),
            ("blue", 4.5),
            ("orange", 4.5),
            ("before", 3),
        ):
            pair = sorted((luminance(colors[ground]), luminance(colors[name])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (ground, name)
    # The figures take the page's colours.
    stroke = opened.page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert stroke in (colors["ink"], colors["grey"])


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_is_wider_than_the_screen(width: int, browser: Any, path: Path) -> None:
    """On a phone, a tablet and a desk, with a row open and everything unfolded."""
    opened = Opened(browser, path, viewport={"width": width, "height": 800})
    opened.page.locator("#rows .row").nth(1).click()
    opened.page.evaluate(
        "for (const part of document.querySelectorAll('details')) part.open = true"
    )
    assert opened.fits()


def test_it_prints_light_and_without_controls(browser: Any, path: Path) -> None:
    """On paper the ground is light in the dark too, and what cannot be pressed is gone."""
    opened = Opened(browser, path, color_scheme="dark")
    opened.page.locator("#rows .row").first.click()
    opened.page.emulate_media(media="print", color_scheme="dark")
    ground, ink = opened.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert luminance(ground) > 0.9
    assert luminance(ink) < 0.1
    for hidden in (".controls", "nav", "#more"):
        assert not opened.page.locator(hidden).is_visible()
    assert opened.page.locator(".opened ol").first.is_visible()
    assert opened.page.locator(".files dd").first.is_visible()
    assert opened.page.pdf().startswith(b"%PDF")


def test_without_javascript_the_rest_is_read(browser: Any, path: Path) -> None:
    """Figures and metrics stand there; the table says what it lacks."""
    opened = Opened(browser, path, java_script_enabled=False)
    assert opened.page.get_by_text("The table needs JavaScript").is_visible()
    assert opened.page.locator("svg").first.is_visible()
