"""Random erasing (Zhong et al. 2020) with timm's meaning: a rectangle of 2 to 33 % of the picture is overwritten."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment.colours import Colours
from pipeline.data.augment.geometry import RECTANGLE_DRAWS, rectangles

DRAWS = RECTANGLE_DRAWS + 2
NOISE = 2**20  # normal numbers, of which every picture takes a stretch


def erase(images: Tensor, chances: np.ndarray, probability: float, mode: str, colours: Colours) -> Tensor:
    """Overwrite a rectangle of some of the pictures (B, H, W, C) uint8; chances (B, DRAWS).

    mode: "const" is the mean colour, "rand" one normal colour a picture, "pixel" one a pixel. They are normal after the
    normalisation; what is then darker than black or lighter than white becomes black or white.
    """
    height, width = images.shape[1:3]
    chosen = np.flatnonzero(chances[:, -1] < probability)
    sides = np.full(len(chosen), height), np.full(len(chosen), width)
    boxes = rectangles(chances[chosen, :RECTANGLE_DRAWS], *sides, area=(0.02, 1 / 3), ratio=1 / 0.3, smaller=1)
    rows = torch.from_numpy(chosen).to(images.device)
    content = CONTENTS[mode](images[rows], chances[chosen, -2], colours)
    inside = torch.from_numpy(_inside(boxes, height, width)).to(images.device)
    result = images.clone()
    result[rows] = torch.where(inside, content.round().clamp(0, 255).to(images.dtype), images[rows])
    return result


def _inside(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B, H, W, 1) whether a pixel lies in the picture's box."""
    top, left, tall, wide = boxes.T[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    vertical, horizontal = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    return vertical[:, :, None, None] & horizontal[:, None, :, None]


def _mean(images: Tensor, _chances: np.ndarray, colours: Colours) -> Tensor:
    return colours.mean


def _one_colour(images: Tensor, chances: np.ndarray, colours: Colours) -> Tensor:
    return (
        colours.mean
        + colours.std * _noise(images.device)[_stretches(chances, images.shape[3])[:, None, None].to(images.device)]
    )


def _colours(images: Tensor, chances: np.ndarray, colours: Colours) -> Tensor:
    stretches = _stretches(chances, images.shape[1:].numel()).to(images.device)
    return colours.mean + colours.std * _noise(images.device)[stretches].view(images.shape)


def _stretches(chances: np.ndarray, length: int) -> Tensor:
    """(B, length) consecutive places in the noise, from a place that the chances (B,) say."""
    return (torch.from_numpy((chances * NOISE).astype(np.int64))[:, None] + torch.arange(length)) % NOISE


@cache
def _noise(device: torch.device) -> Tensor:
    """Always the same standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(NOISE, dtype=np.float32)).to(device)


CONTENTS = {"const": _mean, "rand": _one_colour, "pixel": _colours}
