"""Pure arithmetic on counts.

An evaluation, on however many workers, adds up one `Counts` and divides once, here. Averages of averages would
weigh a short last batch like a full one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

CALIBRATION_BINS = 15


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


def accuracy_noise(accuracy: float, pictures: int) -> float:
    """Half the width of the 95 % interval (Agresti & Coull 1998) that `pictures` test pictures leave around an accuracy."""
    count = pictures + 4
    centre = (accuracy * pictures + 2) / count
    return 2 * float(np.sqrt(centre * (1 - centre) / count))


def confusion_rows(confusion: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """The matrix as a table that people and plots can read: actual, predicted, count."""
    return [
        {"actual": actual, "predicted": predicted, "count": int(confusion[row, column])}
        for row, actual in enumerate(classes)
        for column, predicted in enumerate(classes)
    ]
