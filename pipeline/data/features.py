"""A teacher's maps of the training pictures, stored once, and shown cropped and flipped as the pictures are.

The map of a part of a picture is taken to be that part of the map. That is exact where the part is the whole, and else as
good as the teacher is blind to what is around; so the teacher need not run while a student is trained.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import files
from pipeline.config import Augmentation, UserError
from pipeline.data.augment.chances import Chances
from pipeline.data.augment.geometry import RECTANGLE_DRAWS, Frame, corners, mirrored
from pipeline.data.loading import CARRIED_BYTES

ABOUT = "about.json"


@dataclass(frozen=True)
class Features:
    """Maps (N, C, h, w) float16 of each layer as a job carries them: arrays, or files that every worker can open."""

    paths: tuple[str, ...]
    maps: tuple[np.ndarray, ...] | None = None

    def opened(self) -> Sequence[np.ndarray]:
        """The maps; what is in files is read where it lies."""
        return self.maps or [_opened(Path(path)) for path in self.paths]


def store(folder: Path, batches: Iterable[Sequence[Tensor]], *, pictures: int, about: dict[str, Any]) -> None:
    """Write the maps of so many pictures, batch by batch, layer by layer; the folder is there whole or not at all."""
    with files.replacing(folder) as aside:
        aside.mkdir()
        layers: list[np.ndarray] = []
        done = 0
        for maps in batches:
            layers = layers or [_new(aside / f"{index}.npy", (pictures, *each.shape[1:])) for index, each in enumerate(maps)]
            for layer, each in zip(layers, maps, strict=True):
                layer[done : done + len(each)] = each.half().cpu().numpy()
            done += len(maps[0])
        files.write_json(aside / ABOUT, {**about, "layers": len(layers)})


def load(folder: Path, *, about: dict[str, Any]) -> Features:
    """What `store` wrote. Raises UserError where it is missing, damaged or about something else."""
    way_out = "`dvc repro features` makes it"
    found = files.read_json(folder / ABOUT, missing=lambda: UserError(f"{folder} holds no features; {way_out}"))
    if {**found, "layers": None} != {**about, "layers": None}:
        raise UserError(f"{folder} holds the features of another teacher or other settings; {way_out} anew")
    try:
        paths = [(folder / f"{layer}.npy").resolve() for layer in range(found["layers"])]
        maps = tuple(map(_opened, paths))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({type(error).__name__}); {way_out} anew") from None
    carried = sum(each.nbytes for each in maps) <= CARRIED_BYTES
    return Features(tuple(map(str, paths)), tuple(map(np.asarray, maps)) if carried else None)


def shown(
    maps: Sequence[np.ndarray],
    shares: Iterable[np.ndarray],
    settings: Augmentation,
    device: torch.device,
    *,
    side: int,
    seed: int,
    epoch: int,
) -> Iterator[list[Tensor]]:
    """For each batch of views (B,), the maps (B, C, h, w) float32 of what `batches.training` shows of the pictures."""
    for views in shares:
        rows = views % len(maps[0])
        theta = _part(Chances(views, seed, epoch), settings, side=side).to(device)
        yield [_cut(torch.from_numpy(each[rows]).to(device).float(), theta) for each in maps]


def _part(chances: Chances, settings: Augmentation, *, side: int) -> Tensor:
    """(B, 2, 3) from what is shown to the whole picture, both from -1 to 1: the affine maps of random crops and flips."""
    count = len(chances.views)
    whole = np.full(count, side)
    draws = chances("resize", RECTANGLE_DRAWS) if settings.random_resized_crop else None
    top, left, height, width = Frame(side, settings.random_resized_crop).boxes(whole, whole, draws).T / side
    down, right = np.zeros((2, count))
    if padding := settings.crop_padding:
        down, right = (corners(chances("crop", 2), padding).T - padding) / side
    mirror = np.where(mirrored(chances("flip", 1)), -1.0, 1.0) if settings.horizontal_flip else np.ones(count)
    theta = np.zeros((count, 2, 3))
    theta[:, 0, 0], theta[:, 1, 1] = mirror * width, height
    theta[:, 0, 2] = 2 * (left + right * width) + width - 1
    theta[:, 1, 2] = 2 * (top + down * height) + height - 1
    return torch.from_numpy(theta).float()


def _cut(maps: Tensor, theta: Tensor) -> Tensor:
    """Parts of maps (B, C, h, w), at the size of the whole; what lies outside is as the border."""
    grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def _new(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float16, shape)


def _opened(path: Path) -> np.ndarray:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.dtype != np.float16 or found.ndim != 4:
        raise ValueError(path)
    return found
