"""Which weights of a training are its result, and when it may end early. Pure: rows of a history in, answers out."""

from collections.abc import Sequence
from typing import Any

from pipeline.config import Training
from pipeline.durations import Timetable

Row = dict[str, Any]


def is_best(history: Sequence[Row], *, ema: bool) -> bool:
    """Whether the last epoch is better on validation than all before: more accurate, or as accurate at less loss."""
    scores = [_score(row, ema=ema) for row in history]
    return all(scores[-1] > earlier for earlier in scores[:-1])


def is_over(history: Sequence[Row], training: Training, timetable: Timetable) -> bool:
    """Whether all epochs are done, or none within the last `patience` was better than those before."""
    if len(history) >= timetable.epochs:
        return True
    if training.patience is None:
        return False
    patience, ema = timetable.epochs_of(training.patience), "ema" in training.result
    return len(history) > patience and not any(
        is_best(history[: end + 1], ema=ema) for end in range(len(history) - patience, len(history))
    )


def chosen(history: Sequence[Row], training: Training) -> Row:
    """epoch, val_accuracy and val_loss of the weights that are the result."""
    ema = "ema" in training.result
    row = history[-1]
    if "best" in training.result:
        row = max(history, key=lambda row: _score(row, ema=ema))  # the first of equals
    accuracy, loss = _keys(ema=ema)
    return {"epoch": row["epoch"], "val_accuracy": row[accuracy], "val_loss": row[loss]}


def _score(row: Row, *, ema: bool) -> tuple[float, float]:
    accuracy, loss = _keys(ema=ema)
    return row[accuracy], -row[loss]


def _keys(*, ema: bool) -> tuple[str, str]:
    return ("val_ema_accuracy", "val_ema_loss") if ema else ("val_accuracy", "val_loss")
