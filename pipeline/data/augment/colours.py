"""The colours of the training pictures as a whole, which stand for "nothing" where a picture has none."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation (C,) of each channel over the training pictures, from 0 to 255."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> "Colours":
        """From the card's facts, which are of values from 0 to 1."""
        return cls(torch.tensor(mean, device=device) * 255, torch.tensor(std, device=device) * 255)
