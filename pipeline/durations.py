"""How long something lasts, as a person says it: "20 epochs", "3000 steps", "150000 images", or "10 %" of a training.

Settings hold durations as such texts; what one is in steps is known once the pictures are counted. Nothing heavy is imported.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator

SECONDS = {"second": 1, "minute": 60, "hour": 3600}
FORM = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) *(%|(?:epoch|step|image|second|minute|hour)s?)")


@lru_cache  # it is asked at every step
def parsed(duration: str) -> tuple[Fraction, str]:
    """The exact number and the unit in the singular. Raises ValueError where it is no duration."""
    found = FORM.fullmatch(duration)
    if not found:
        raise ValueError(f"'{duration}' is no duration")
    return Fraction(found[1]), found[2].removesuffix("s")


def _checked(given: Any, units: tuple[str, ...], *, positive: bool) -> str:
    number, unit = parsed(given) if isinstance(given, str) and FORM.fullmatch(given) else (Fraction(0), "")
    if unit not in units or unit == "%" and number > 100 or positive and not number:
        known = ", ".join(unit if unit == "%" else f"{unit}s" for unit in units)
        example = f"{given if isinstance(given, int | float) and given > 1 else 3:g} {units[0]}s"
        raise ValueError(f"it must be a{' positive' * positive} number with one of the units {known}, as in '{example}'")
    return str(given)


def _in(*units: str, positive: bool = True) -> BeforeValidator:
    return BeforeValidator(lambda given: _checked(given, units, positive=positive))


Length = Annotated[str, _in("epoch", "step", "image")]  # of a whole training
Part = Annotated[str, _in("epoch", "step", "image", "%")]  # of a training: % of its steps
PartOrZero = Annotated[str, _in("epoch", "step", "image", "%", positive=False)]  # "0 epochs", too
Interval = Annotated[str, _in("second", "minute", "hour", "epoch", positive=False)]  # "0 seconds", too


@dataclass(frozen=True)
class Timetable:
    """What durations are in steps: an epoch has `steps_per_epoch`, except for the last, which ends with `total_steps`."""

    steps_per_epoch: int
    total_steps: int
    batch_size: int

    @classmethod
    def of(cls, length: str, *, steps_per_epoch: int, batch_size: int) -> "Timetable":
        """That of a training of this length; a part of a step counts as a whole one."""
        number, unit = parsed(length)
        total = {"epoch": number * steps_per_epoch, "step": number, "image": number / batch_size}[unit]
        return cls(steps_per_epoch, math.ceil(total), batch_size)

    @property
    def epochs(self) -> int:
        """The whole ones, and the one that is cut short."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps(self, part: str) -> int:
        """A duration within the training; a part of a step counts as a whole one."""
        number, unit = parsed(part)
        if unit == "%":
            return math.ceil(number * self.total_steps / 100)
        return self.of(part, steps_per_epoch=self.steps_per_epoch, batch_size=self.batch_size).total_steps

    def epochs_of(self, part: str) -> int:
        """A duration within the training; a part of an epoch counts as a whole one."""
        return math.ceil(self.steps(part) / self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Those of one epoch, the first of which is 0; none after the end."""
        return max(0, min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch))

    def steps_after(self, epochs: int) -> int:
        """Those of all these epochs together."""
        return min(epochs * self.steps_per_epoch, self.total_steps)


def reaches(part: str, whole: str) -> bool:
    """Whether a part is surely no less than the whole, which is only known where their units are the same, or of "100 %"."""
    (number, unit), (all_of_it, its_unit) = parsed(part), parsed(whole)
    return number >= (100 if unit == "%" else all_of_it) and unit in (its_unit, "%")
