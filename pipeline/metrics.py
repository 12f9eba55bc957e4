"""Pure arithmetic on counts.

An evaluation, on however many workers, adds up one `Counts` and divides once, here. Averages of averages would
weigh a short last batch like a full one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

CALIBRATION_BINS = 15
NORMAL_95 = 1.959964  # standard deviations to either side that hold 95 %


@dataclass(frozen=True)
class Answers:
    """What a network said of N pictures, each (N,): class numbers, and the probability of the class that it named."""

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        return self.labels == self.predicted

    def confusion(self, classes: int) -> np.ndarray:
        """(K, K) counts, rows are actual classes."""
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def bins(self) -> np.ndarray:
        """(CALIBRATION_BINS, 3): pictures, sum of confidences and correct pictures by confidence."""
        which = np.minimum((self.confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        parts = (None, self.confidence, self.correct.astype(float))
        return np.stack([np.bincount(which, part, minlength=CALIBRATION_BINS) for part in parts], 1)

    def worst(self, count: int) -> np.ndarray:
        """The rows of the most confident mistakes, the most confident first."""
        order = np.argsort(-self.confidence, kind="stable")
        return order[~self.correct[order]][:count]


@dataclass(frozen=True)
class Counts:
    """What an evaluation adds up over pictures; K classes.

    loss_sum: sum of cross entropies (nats). top5: pictures whose class is among the five best logits.
    confusion: (K, K), rows are actual and columns predicted classes.
    bins: (CALIBRATION_BINS, 3): pictures, sum of confidences and correct pictures by confidence.
    """

    loss_sum: float
    top5: int
    confusion: np.ndarray
    bins: np.ndarray

    @property
    def total(self) -> int:
        return int(self.confusion.sum())


def summary(counts: Counts) -> dict[str, float]:
    """Accuracies and errors in [0, 1], loss in nats per picture. Raises ValueError where nothing was counted."""
    if counts.total == 0:
        raise ValueError("no picture was evaluated")
    return {
        "accuracy": float(np.trace(counts.confusion)) / counts.total,
        "top5_accuracy": counts.top5 / counts.total,
        "balanced_accuracy": float(np.nanmean(recalls(counts.confusion))),
        "loss": counts.loss_sum / counts.total,
        "calibration_error": calibration_error(counts.bins),
    }


def recalls(confusion: np.ndarray) -> np.ndarray:
    """(K,) fraction of each class that was recognised; NaN for a class without pictures."""
    totals = confusion.sum(axis=1)
    return np.divide(np.diag(confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3) over equally wide bins of confidence."""
    pictures, confidence, correct = bins.T
    return float(np.abs(confidence - correct).sum() / pictures.sum())


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation, which one value does not have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def interval(correct: float, pictures: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that so many correct of so many pictures leave (Wilson 1927)."""
    share, z2 = correct / pictures, NORMAL_95**2
    centre = share + z2 / (2 * pictures)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / pictures + z2 / (4 * pictures**2))
    return max(0.0, (centre - half) / (1 + z2 / pictures)), min(1.0, (centre + half) / (1 + z2 / pictures))


def per_class(confusion: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; None where there is nothing to divide by."""
    right, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return [
        {
            "class": name,
            "pictures": int(actual[row]),
            "precision": _share(right[row], predicted[row]),
            "recall": _share(right[row], actual[row]),
            "f1": _share(2 * right[row], actual[row] + predicted[row]),
        }
        for row, name in enumerate(classes)
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def confusion_rows(confusion: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """The matrix as a table that people and plots can read: actual, predicted, count."""
    return [
        {"actual": actual, "predicted": predicted, "count": int(confusion[row, column])}
        for row, actual in enumerate(classes)
        for column, predicted in enumerate(classes)
    ]
