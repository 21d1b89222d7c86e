"""The learning curve on the demo corpus."""

from dataclasses import replace

import numpy as np
import pytest

from nexus_integrations.evaluation import compare, evaluate
from nexus_integrations.nudge import nudge_index
from nexus_integrations.report import Report
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.curve import learning_curve
from nexus_integrations.training.finetune import finetune

LINEAR = FinetuneConfig(dendrites=0, epochs=4)


def test_the_whole_training_set_gains_what_the_job_gains(clinic, clinic_encoder, clinic_index):
    """A size above the number of questions is all of them: fine-tune, nudge, compare."""
    train, dev, test = clinic
    curve = learning_curve(
        clinic_encoder, train, dev, test=test, sizes=[10, 10_000], config=LINEAR, index=clinic_index
    )
    assert list(curve) == [10, len(train)]
    before = evaluate(DenseRetriever(clinic_index, clinic_encoder), test)
    order = np.random.default_rng(0).permutation(list(train.queries)).tolist()
    tuned = finetune(clinic_encoder, train.subset(order), dev, LINEAR, index=clinic_index).encoder
    nudge_index(clinic_index, tuned, train, dev)
    expected = compare(before, evaluate(DenseRetriever(clinic_index, tuned), test))
    assert curve[len(train)].differences == pytest.approx(expected.differences)
    assert curve[len(train)].wins == expected.wins


def test_the_index_is_read_and_not_changed(clinic, clinic_encoder, clinic_index):
    """A curve with heads on both sides, refit and nudges leaves the vectors as they were."""
    train, _, test = clinic
    ids = list(train.corpus)
    before = clinic_index.vectors(ids).copy()
    config = replace(LINEAR, heads="shared", refit=True)
    curve = learning_curve(
        clinic_encoder, train, test=test, sizes=[40], config=config, index=clinic_index
    )
    assert list(curve) == [40]
    np.testing.assert_array_equal(clinic_index.vectors(ids), before)


def test_seeds_are_averaged_by_question(clinic, clinic_encoder, clinic_index):
    """The mean gain of two seeds is the mean of their gains."""
    train, dev, test = clinic

    def gain(*seeds):
        curve = learning_curve(
            clinic_encoder,
            train,
            dev,
            test=test,
            sizes=[20],
            config=LINEAR,
            index=clinic_index,
            seeds=seeds,
        )
        return curve[20].differences["ndcg@10"]

    assert gain(0) != gain(1)
    assert gain(0, 1) == pytest.approx((gain(0) + gain(1)) / 2)


def test_a_report_draws_it(clinic, clinic_encoder, clinic_index, tmp_path):
    """The result is what `Report.of` takes."""
    train, dev, test = clinic
    curve = learning_curve(
        clinic_encoder, train, dev, test=test, sizes=[10, 20], config=LINEAR, index=clinic_index
    )
    before = evaluate(DenseRetriever(clinic_index, clinic_encoder), test)
    stages = {"before": before, "after": before}
    Report.of(stages, learning_curve=curve).save(tmp_path / "report.html")
    assert "number of training questions" in (tmp_path / "report.html").read_text()


def test_too_few_questions_and_heads_are_refused(clinic, clinic_encoder, clinic_index):
    """One question, no size, and an encoder that was tuned already."""
    train, dev, test = clinic
    for sizes in ([1], []):
        with pytest.raises(ValueError, match="at least 2 questions"):
            learning_curve(clinic_encoder, train, test=test, sizes=sizes, index=clinic_index)
    tuned = finetune(clinic_encoder, train, dev, LINEAR, index=clinic_index).encoder
    with pytest.raises(ValueError, match="has heads already"):
        learning_curve(tuned, train, test=test, sizes=[20], index=clinic_index)


def test_a_trained_backbone_is_refused(clinic, clinic_encoder):
    """Its passages would have to be embedded anew for every point."""
    train, _, test = clinic
    config = FinetuneConfig(backbone="trainable", heads="shared")
    with pytest.raises(ValueError, match='leave backbone at "frozen"'):
        learning_curve(clinic_encoder, train, test=test, config=config)
