"""Which of two networks is better, said only where the same test pictures, and where there are several the seeds, show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from pipeline.metrics import NORMAL_95, Answers

SURE = 0.05  # of being wrong, over all pairs together

BySeed = Mapping[int, Answers]


@dataclass(frozen=True)
class Pair:
    """Two networks on the same pictures; the difference of accuracies, first less second, with its 95 % interval.

    p_value: of a difference as large by chance. adjusted: the same for all pairs together (Holm 1979).
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float

    @property
    def verdict(self) -> str:
        """What may be said of the first."""
        if self.adjusted >= SURE:
            return "cannot be told from"
        return "is better than" if self.difference > 0 else "is worse than"


def compare(networks: Mapping[str, BySeed], pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Each pair of network names, in their order."""
    found = [Pair(first, second, *paired(networks[first], networks[second]), adjusted=1.0) for first, second in pairs]
    adjusted = holm([pair.p_value for pair in found])
    return [replace(pair, adjusted=value) for pair, value in zip(found, adjusted, strict=True)]


def paired(first: BySeed, second: BySeed) -> tuple[float, float, float, float]:
    """Difference, its 95 % interval and p, over the pictures that both saw and the seeds that both have.

    One seed: McNemar's exact test (1947), of these two trained networks. Several: the larger p of the same test by
    picture (Eliasziw and Donner 1991) and of a paired t test by seed, since either kind of chance may explain it.
    """
    seeds = sorted(first.keys() & second.keys())
    differences = np.array([first[seed].correct.astype(float) - second[seed].correct for seed in seeds])  # (seeds, pictures)
    by_picture, mean = differences.mean(0), float(differences.mean())
    half = NORMAL_95 * float(by_picture.std(ddof=1)) / len(by_picture) ** 0.5
    if len(seeds) == 1:
        p = mcnemar(int((by_picture > 0).sum()), int((by_picture < 0).sum()))
    else:
        p, by_seed = _by_picture(by_picture), _by_seed(differences.mean(1))
        p, half = max(p, by_seed[0]), max(half, by_seed[1])
    return mean, mean - half, mean + half, p


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p, from the pictures that only one of two networks recognised."""
    fewer, both = min(first_only, second_only), first_only + second_only
    return min(1.0, 2 * float(special.bdtr(fewer, both, 0.5))) if both else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p for all of them together: the smallest times their number, the next times one less, never falling."""
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def _by_picture(differences: np.ndarray) -> float:
    spread = float((differences**2).sum()) ** 0.5
    return 2 * float(special.ndtr(-abs(differences.sum()) / spread)) if spread else 1.0


def _by_seed(differences: np.ndarray) -> tuple[float, float]:
    """p of a paired t test, and half the 95 % interval."""
    degrees, error = len(differences) - 1, float(differences.std(ddof=1)) / len(differences) ** 0.5
    half = float(special.stdtrit(degrees, 0.975)) * error
    if error == 0:
        return (0.0 if differences.any() else 1.0), half
    return 2 * float(special.stdtr(degrees, -abs(differences.mean()) / error)), half


def of_interest(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """From the rows of the comparison: every guided student with itself unguided, and the student that is best on
    validation with its teacher."""
    names = [row["network"] for row in rows]
    guided = [(name, alone) for name in names if (alone := unguided(name)) in names]
    students = [row for row in rows if not row["network"].startswith("teacher/")]
    teachers = [name for name in names if name.startswith("teacher/")]
    best = [max(students, key=lambda row: row["val_accuracy"])["network"]] if students else []
    return guided + [(student, teacher) for student in best for teacher in teachers]


def unguided(network: str) -> str | None:
    """The same student without a teacher, of a guided one."""
    kind, name = network.split("/")
    return f"unguided/{name.rsplit('-', 1)[0]}" if kind == "guided" else None


def answer(rows: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> list[str]:
    """Sentences that say what guidance did, at which cost, and how the best student stands to its teacher."""
    by_name = {row["network"]: row for row in rows}
    guided = [pair for pair in pairs if pair.second == unguided(pair.first)]
    return [*_of_guidance(guided, by_name), *(_of_teacher(pair, by_name) for pair in pairs if pair not in guided)]


def _of_guidance(pairs: Sequence[Pair], rows: Mapping[str, dict[str, Any]]) -> list[str]:
    if not pairs:
        return []
    told = max(pairs, key=lambda pair: rows[pair.first]["val_accuracy"])
    cost = rows[told.first]["guidance_extra_macs"]
    price = "" if cost is None else f", for {100 * cost:.2g} % more arithmetic in training"
    one = f"{told.first} {told.verdict} {told.second}: {_points(told)}{price}."
    if len(pairs) == 1:
        return [one]
    better, worse = (_count(sum(pair.verdict == verdict for pair in pairs)) for verdict in ("is better than", "is worse than"))
    rest = _count(sum(pair.verdict == "cannot be told from" for pair in pairs))
    return [
        f"Of {len(pairs)} guided students, {better} better than the same student unguided, {worse} worse, and {rest} "
        f"not to be told from it; the one that is best on validation, {one}"
    ]


def _count(number: int) -> str:
    return "none is" if number == 0 else "one is" if number == 1 else f"{number} are"


def _of_teacher(pair: Pair, rows: Mapping[str, dict[str, Any]]) -> str:
    first, second = (100 * rows[name]["test_accuracy"] for name in (pair.first, pair.second))
    return (
        f"The student that is best on validation, {pair.first}, {pair.verdict} {pair.second}: "
        f"{first:.1f} against {second:.1f} % of the test pictures, {_points(pair)}."
    )


def _points(pair: Pair) -> str:
    difference, low, high = (signed(100 * value) for value in (pair.difference, pair.low, pair.high))
    return f"{difference} points (95 %: {low} to {high})"


def signed(value: float, digits: int = 1) -> str:
    """+1.2, −1.2, and 0.0 without a sign."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"
