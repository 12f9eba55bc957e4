"""Random erasing (Zhong et al. 2020) with timm's meaning: a rectangle of 2 to 33 % of the picture is overwritten."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment.colours import Colours
from pipeline.data.augment.geometry import RECTANGLE_DRAWS, rectangles

DRAWS = RECTANGLE_DRAWS + 2
NOISE = 2**22  # normal numbers, of which every picture takes a stretch


def erase(images: Tensor, chances: np.ndarray, probability: float, mode: str, colours: Colours) -> Tensor:
    """Overwrite a rectangle of some of the pictures (B, C, H, W) uint8; chances (B, DRAWS).

    mode: "const" is the mean colour, "rand" one normal colour a picture, "pixel" one a pixel. They are normal after the
    normalisation; what is then darker than black or lighter than white becomes black or white.
    """
    height, width = images.shape[2:]
    chosen = np.flatnonzero(chances[:, -1] < probability)
    sides = np.full(len(chosen), height), np.full(len(chosen), width)
    boxes = rectangles(chances[chosen, :RECTANGLE_DRAWS], *sides, area=(0.02, 1 / 3), ratio=1 / 0.3, smaller=1)
    rows = torch.from_numpy(chosen).to(images.device)
    content = colours.mean[:, None, None] + colours.std[:, None, None] * _noise_of(images, mode, chances[chosen, -2])
    inside = torch.from_numpy(_inside(boxes, height, width).astype(np.uint8)).to(images.device)
    result = images.clone()
    kept = images.index_select(0, rows).mul_(1 - inside)  # several times as fast as torch.where
    result[rows] = kept.add_(content.round().clamp(0, 255).to(images.dtype) * inside)
    return result


def _inside(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B, 1, H, W) whether a pixel lies in the picture's box."""
    top, left, tall, wide = boxes.T[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    vertical, horizontal = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    return vertical[:, None, :, None] & horizontal[:, None, None, :]


def _noise_of(images: Tensor, mode: str, chances: np.ndarray) -> Tensor:
    """Standard normal numbers for pictures like these (_, C, H, W): stretches of the noise from where the chances (B,) say."""
    if mode == "const":
        return torch.zeros((), device=images.device)
    shape = images.shape[1:] if mode == "pixel" else (images.shape[1], 1, 1)
    stretches = _noise(images.device).unfold(0, math.prod(shape), 1)
    starts = torch.from_numpy((chances * len(stretches)).astype(np.int64)).to(images.device)
    return stretches[starts].view(-1, *shape)


@cache
def _noise(device: torch.device) -> Tensor:
    """Always the same standard normal numbers, many more than a picture takes."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(NOISE, dtype=np.float32)).to(device)
