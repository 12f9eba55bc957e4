"""Numbers of an evaluation, and "better" only where it is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from pipeline import metrics
from pipeline.metrics import Answers
from pipeline.report import evidence
from pipeline.report.evidence import Pair
from pipeline.training import engine


def answers(correct) -> Answers:
    """Of two classes, right where `correct` says so."""
    predicted = (~np.asarray(correct, bool)).astype(int)
    return Answers(np.zeros(len(predicted), int), predicted, np.full(len(predicted), 0.75))


def test_counts_and_answers_tell_the_same():
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(500, 7), torch.randint(0, 7, (500,))
    counts = engine.to_counts(engine.counts(logits, labels, 7), 7)
    confidence, predicted = logits.softmax(1).max(1)
    told = Answers(labels.numpy(), predicted.numpy(), confidence.numpy())
    assert np.array_equal(told.confusion(7), counts.confusion)
    np.testing.assert_allclose(told.bins(), counts.bins, rtol=1e-5)


def test_precision_recall_and_f1_are_scikit_learns():
    rng = np.random.default_rng(0)
    told = Answers(rng.integers(0, 4, 300), rng.integers(0, 4, 300), np.ones(300))
    rows = metrics.per_class(told.confusion(4), list("abcd"))
    expected = np.array(precision_recall_fscore_support(told.labels, told.predicted))
    found = np.array([[row[key] for row in rows] for key in ("precision", "recall", "f1", "pictures")])
    np.testing.assert_allclose(found, expected)


def test_a_class_that_was_never_met_or_named_has_no_share():
    row = metrics.per_class(np.array([[3, 0], [0, 0]]), ["a", "b"])[1]
    assert (row["pictures"], row["precision"], row["recall"], row["f1"]) == (0, None, None, None)


@given(pictures=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_is_wilsons(pictures, share):
    correct = round(share * pictures)
    expected = binomtest(correct, pictures).proportion_ci(0.95, method="wilson")
    assert metrics.interval(correct, pictures) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_worst_are_the_most_confident_mistakes():
    told = Answers(np.array([0, 0, 0, 0]), np.array([1, 0, 1, 1]), np.array([0.6, 0.99, 0.9, 0.9]))
    assert told.worst(2).tolist() == [2, 3] and told.worst(9).tolist() == [2, 3, 0]


@given(first=st.integers(0, 300), second=st.integers(0, 300))
def test_mcnemar_is_an_exact_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert evidence.mcnemar(first, second) == pytest.approx(expected, rel=1e-6)


def test_holm_by_hand():
    assert evidence.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert evidence.holm([]) == []


@given(seed=st.integers(0, 999), seeds=st.integers(1, 4))
def test_turning_a_pair_round_turns_the_difference_round(seed, seeds):
    rng = np.random.default_rng(seed)
    first, second = ({each: answers(rng.random(50) < 0.7) for each in range(seeds)} for _ in range(2))
    difference, low, high, p = evidence.paired(first, second)
    assert evidence.paired(second, first) == pytest.approx((-difference, -high, -low, p))
    assert low <= difference <= high and 0 <= p <= 1


def test_networks_that_answer_alike_cannot_be_told_apart():
    same = {0: answers([1, 0, 1, 1]), 1: answers([1, 1, 1, 0])}
    (pair,) = evidence.compare({"a": same, "b": same}, [("a", "b")])
    assert (pair.difference, pair.p_value, pair.verdict) == (0, 1, "cannot be told from")


def test_better_needs_the_pictures_and_the_seeds():
    always, never = answers([1] * 100), answers([1] * 80 + [0] * 20)
    (sure,) = evidence.compare({"a": {0: always}, "b": {0: never}}, [("a", "b")])
    assert sure.verdict == "is better than" and sure.difference == pytest.approx(0.2)
    (other,) = evidence.compare({"a": {0: never}, "b": {0: always}}, [("a", "b")])
    assert other.verdict == "is worse than"
    unsteady = {0: always, 1: never}, {0: never, 1: answers([1] * 84 + [0] * 16)}
    (pair,) = evidence.compare(dict(zip("ab", unsteady, strict=True)), [("a", "b")])
    assert pair.difference > 0 and pair.verdict == "cannot be told from", "one seed gained much and the other lost"


def test_chance_makes_few_verdicts():
    """Under no difference at all, at most about one experiment in twenty says that there is one."""
    rng = np.random.default_rng(0)

    def wrong() -> bool:
        networks = {name: {0: answers(rng.random(200) < 0.8)} for name in "abcd"}
        return any(pair.adjusted < 0.05 for pair in evidence.compare(networks, [("a", "b"), ("c", "b"), ("d", "b")]))

    assert np.mean([wrong() for _ in range(300)]) < 0.08


def row(network: str, val: float, cost: float | None = None) -> dict:
    return {"network": network, "val_accuracy": val, "test_accuracy": val, "guidance_extra_macs": cost}


def test_the_answer_is_made_from_the_pairs():
    rows = [row("teacher/r", 0.9), row("unguided/vit", 0.7), row("guided/vit-early", 0.8, 0.21), row("guided/vit-c", 0.75, 0.5)]
    wanted = [("guided/vit-early", "unguided/vit"), ("guided/vit-c", "unguided/vit"), ("guided/vit-early", "teacher/r")]
    assert evidence.of_interest(rows) == wanted
    numbers = [(0.1, 0.05, 0.15, 0.01, 0.02), (0.05, -0.01, 0.11, 0.2, 0.2), (-0.1, -0.2, -0.05, 0.001, 0.003)]
    guidance, teacher = evidence.answer(rows, [Pair(*pair, *each) for pair, each in zip(wanted, numbers, strict=True)])
    assert "Of 2 guided students, one is better" in guidance and "none is worse, and one is not to be told" in guidance
    assert (
        "vit-early is better than unguided/vit: +10.0 points (95 %: +5.0 to +15.0), for 21 % more arithmetic in training."
        in guidance
    )
    assert teacher.startswith(
        "The student that is best on validation, guided/vit-early, is worse than teacher/r: 80.0 against 90.0"
    )


def test_without_guided_students_only_the_teacher_is_told():
    assert evidence.of_interest([row("teacher/r", 0.9), row("unguided/vit", 0.7)]) == [("unguided/vit", "teacher/r")]
    assert evidence.of_interest([row("teacher/r", 0.9)]) == [] and evidence.answer([], []) == []
