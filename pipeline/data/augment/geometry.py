"""Crops and flips: which part of a picture is seen, and which way round."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRIES = 10  # at a rectangle that fits, as in torchvision and timm
RECTANGLE_DRAWS = 2 * TRIES + 2
RATIO = 4 / 3  # of the sides of a random resized crop, at most
WEIGHT_BITS = 15  # sums of 8-bit values with such weights are exact in float32


@dataclass(frozen=True)
class Frame:
    """The part of a picture that is shown, and at which size.

    side: height and width in pixels. least_area: of a random resized crop, as a share of the picture's area; None shows
    the largest square in the middle.
    """

    side: int
    least_area: float | None = None

    def boxes(self, heights: np.ndarray, widths: np.ndarray, chances: np.ndarray | None) -> np.ndarray:
        """(B, 4) top, left, height, width, of pictures of the given sizes (B,); chances (B, RECTANGLE_DRAWS) if random."""
        if self.least_area and chances is not None:
            return crop_boxes(chances, heights, widths, self.least_area)
        square = np.minimum(heights, widths)
        return np.stack([(heights - square) // 2, (widths - square) // 2, square, square], 1)

    def show(self, images: Tensor, chances: np.ndarray | None) -> Tensor:
        """Pictures (B, C, H, W) uint8 as (B, C, side, side)."""
        height, width = images.shape[2:]
        if height == width == self.side and (chances is None or not self.least_area):
            return images
        return resized(images, self.boxes(np.full(len(images), height), np.full(len(images), width), chances), self.side)


def crop(images: Tensor, chances: np.ndarray, padding: int) -> Tensor:
    """A window of the old size, anywhere in the picture with `padding` zeros (pixels) added on each side.

    images (B, C, H, W) uint8; chances (B, 2) in [0, 1).
    """
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, tops, lefts, H, W), without a copy
    top, left = torch.from_numpy(corners(chances, padding)).to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def corners(chances: np.ndarray, padding: int) -> np.ndarray:
    """(B, 2) top and left of the windows of `crop`, in pixels of the padded picture."""
    return (chances * (2 * padding + 1)).astype(np.int64)


def flip(images: Tensor, chances: np.ndarray) -> Tensor:
    """Mirror pictures (B, C, H, W) left and right with probability 1/2; chances (B, 1)."""
    rows = torch.from_numpy(np.flatnonzero(mirrored(chances))).to(images.device)
    flipped = images.clone()
    flipped[rows] = images.index_select(0, rows).flip(3)
    return flipped


def mirrored(chances: np.ndarray) -> np.ndarray:
    """(B,) whether `flip` mirrors a picture."""
    return chances[:, 0] < 0.5


def crop_boxes(chances: np.ndarray, heights: np.ndarray, widths: np.ndarray, least_area: float) -> np.ndarray:
    """(B, 4) top, left, height, width of random resized crops (Szegedy et al. 2015) of pictures of the given sizes (B,).

    Sides of 3 to 4 up to 4 to 3; where nothing fits, the largest such part in the middle.
    """
    boxes = rectangles(chances, heights, widths, area=(least_area, 1.0), ratio=RATIO)
    tall, wide = np.minimum(heights, np.round(widths * RATIO)), np.minimum(widths, np.round(heights * RATIO))
    middle = np.stack([(heights - tall) // 2, (widths - wide) // 2, tall, wide], 1)
    return np.where(boxes[:, 2:3] > 0, boxes, middle).astype(np.int64)


def rectangles(
    chances: np.ndarray, heights: np.ndarray, widths: np.ndarray, *, area: tuple[float, float], ratio: float, smaller: int = 0
) -> np.ndarray:
    """(B, 4) top, left, height, width: the first of ten random rectangles that fits, all zero where none does.

    chances (B, RECTANGLE_DRAWS); area: least and most, as a share of the picture's; ratio: of its sides, at most;
    smaller: pixels by which each side must be shorter than the picture's.
    """
    sizes = (area[0] + (area[1] - area[0]) * chances[:, :TRIES]) * (heights * widths)[:, None]
    ratios = np.exp(math.log(ratio) * (2 * chances[:, TRIES : 2 * TRIES] - 1))
    tall, wide = np.round(np.sqrt(sizes * ratios)), np.round(np.sqrt(sizes / ratios))
    fits = (tall >= 1) & (wide >= 1) & (tall <= (heights - smaller)[:, None]) & (wide <= (widths - smaller)[:, None])
    first = np.arange(len(fits)), fits.argmax(1)
    height, width = tall[first], wide[first]
    top = np.floor(chances[:, -2] * (heights - height + 1))
    left = np.floor(chances[:, -1] * (widths - width + 1))
    return np.where(fits.any(1)[:, None], np.stack([top, left, height, width], 1), 0).astype(np.int64)


def resized(images: Tensor, boxes: np.ndarray, side: int) -> Tensor:
    """The boxes (B, 4) of the pictures (B, C, H, W) uint8, each resized to (side, side): bicubic, antialiased.

    It is Pillow's filter, within 2 of 255, as two matrix products.
    """
    vertical = _weights(boxes[:, 0], boxes[:, 2], images.shape[2], side, images.device)
    horizontal = _weights(boxes[:, 1], boxes[:, 3], images.shape[3], side, images.device)
    lines = images.float().flatten(1, 2)  # of all channels
    narrowed = torch.bmm(lines, horizontal.transpose(1, 2)).round_().clamp_(0, 255).unflatten(1, images.shape[1:3])
    return torch.matmul(vertical[:, None], narrowed).round_().clamp_(0, 255).to(images.dtype)


def _weights(starts: np.ndarray, lengths: np.ndarray, old: int, new: int, device: torch.device) -> Tensor:
    """(B, new, old) the share of each old pixel of a line in each new one: Keys' cubic, a = -1/2, widened to shrink."""
    scale = (lengths / new)[:, None]
    stretch = np.maximum(scale, 1)
    middles = starts[:, None] + (np.arange(new) + 0.5) * scale
    first = np.floor(middles - 2 * stretch).astype(np.int64)
    pixels = first[:, :, None] + np.arange(math.ceil(4 * stretch.max()) + 1)  # (B, new, taps) that may have a share
    shares = _cubic(np.abs(pixels + 0.5 - middles[:, :, None]) / stretch[:, :, None])
    shares *= (pixels >= starts[:, None, None]) & (pixels < (starts + lengths)[:, None, None])
    shares = np.round(shares / shares.sum(2, keepdims=True) * 2**WEIGHT_BITS) / 2**WEIGHT_BITS
    weights = torch.zeros(len(starts), new, old, device=device)
    places = torch.from_numpy(pixels.clip(0, old - 1)).to(device)
    return weights.scatter_add_(2, places, torch.from_numpy(shares.astype(np.float32)).to(device))


def _cubic(distance: np.ndarray) -> np.ndarray:
    near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))
