"""Random numbers that belong to a picture: functions of (seed, epoch, view, operation), whoever asks, whenever.

A view is one meeting with a picture in an epoch. The i-th meeting with picture p of N is view p + i * N, so that where
every picture is met once, its view is its index.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chances:
    """The random numbers of some views (B,) in an epoch: `chances("flip", 1)` is (B, 1) in [0, 1)."""

    views: np.ndarray
    seed: int
    epoch: int

    def __call__(self, operation: str, draws: int) -> np.ndarray:
        return uniform(self.views, draws, seed=self.seed, epoch=self.epoch, operation=operation)


def uniform(views: np.ndarray, draws: int, *, seed: int, epoch: int, operation: str) -> np.ndarray:
    """(B, draws) numbers in [0, 1), each a function of its arguments alone: SplitMix64 (Steele et al. 2014) of a counter.

    Operations are told apart by the first eight letters of their names.
    """
    key = _mix(
        np.uint64(seed) ^ _mix(np.uint64(epoch) ^ _mix(np.uint64(int.from_bytes(operation.encode()[:8].ljust(8), "big"))))
    )
    counters = views.astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
    return (_mix(_mix(counters) ^ key) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def normal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Standard normal numbers from two independent uniform ones in [0, 1) (Box and Muller 1958)."""
    return np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)


def _mix(state: Any) -> Any:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
