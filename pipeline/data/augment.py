"""What happens to the pixels of a training picture.

Every random number of a picture is a function of (seed, epoch, picture, operation): neither the number of workers
nor the order of work can change it. An operation takes pictures (B, H, W, C) uint8 and a table (B, draws) of numbers
in [0, 1), and returns pictures of the same shape. Adding one is a function here and an entry in OPERATIONS.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.config import Augmentation


def augment(images: torch.Tensor, pictures: np.ndarray, settings: Augmentation, *, seed: int, epoch: int) -> torch.Tensor:
    """Apply the operations that the settings switch on to images (B, H, W, C) uint8; `pictures` are their B indices."""
    for name, (setting, draws, operation) in OPERATIONS.items():
        if value := getattr(settings, setting):
            chances = uniform(pictures, draws, seed=seed, epoch=epoch, operation=name)
            images = operation(images, torch.from_numpy(chances).to(images.device), value)
    return images


def uniform(pictures: np.ndarray, draws: int, *, seed: int, epoch: int, operation: str) -> np.ndarray:
    """(B, draws) numbers in [0, 1), each a function of its arguments alone: SplitMix64 (Steele et al. 2014) of a counter."""
    key = _mix(
        np.uint64(seed) ^ _mix(np.uint64(epoch) ^ _mix(np.uint64(int.from_bytes(operation.encode()[:8].ljust(8), "big"))))
    )
    counters = pictures.astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
    return (_mix(_mix(counters) ^ key) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _mix(state: Any) -> Any:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def crop(images: torch.Tensor, chances: torch.Tensor, padding: int) -> torch.Tensor:
    """A window of the old size, anywhere in the picture with `padding` zeros (pixels) added on each side."""
    height, width = images.shape[1:3]
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    top, left = (chances * (2 * padding + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    return padded[torch.arange(len(images), device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def flip(images: torch.Tensor, chances: torch.Tensor, _enabled: bool) -> torch.Tensor:
    """Mirror left and right with probability 1/2."""
    return torch.where(chances[:, :, None, None] < 0.5, images.flip(2), images)


def erase(images: torch.Tensor, chances: torch.Tensor, probability: float) -> torch.Tensor:
    """Random erasing (Zhong et al. 2020): area 2 to 40 %, aspect 0.3 to 1/0.3, filled with the picture's own mean colour."""
    height, width = images.shape[1:3]
    chosen, area, aspect, top, left = chances.unbind(1)
    pixels = (0.02 + 0.38 * area) * height * width
    ratio = torch.exp(np.log(0.3) * (1 - 2 * aspect))
    tall, wide = (pixels * ratio).sqrt().clamp(max=height), (pixels / ratio).sqrt().clamp(max=width)
    inside = _within(top * (height - tall), tall, height)[:, :, None] & _within(left * (width - wide), wide, width)[:, None, :]
    mask = (inside & (chosen < probability)[:, None, None])[..., None]
    mean = images.float().mean((1, 2), keepdim=True).round().to(images.dtype)
    return torch.where(mask, mean, images)


def _within(start: torch.Tensor, length: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size) whether each of the positions lies in [start, start + length)."""
    middle = torch.arange(size, device=start.device) + 0.5
    return (middle >= start[:, None]) & (middle < (start + length)[:, None])


# name: (the setting that switches it on, random numbers it draws per picture, the operation), in the order of work
OPERATIONS: dict[str, tuple[str, int, Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]]] = {
    "crop": ("crop_padding", 2, crop),
    "flip": ("horizontal_flip", 1, flip),
    "erase": ("erase_probability", 5, erase),
}
