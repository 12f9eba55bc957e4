"""What a trained network says of picture files, decoded, cut, resized and normalised as its training pictures were."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import UserError
from pipeline.data import decode, loading
from pipeline.data.augment.geometry import Frame
from pipeline.data.sources.folders import EXTENSIONS
from pipeline.training import engine
from pipeline.training.checkpoint import Model


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, the likeliest first."""

    picture: str
    labels: list[str]
    probabilities: list[float]


class Predictor:
    """A trained network on a device, from pixels of any size to probabilities."""

    def __init__(self, model: Model, device: torch.device) -> None:
        preprocessing = model.config["pretrained_cfg"]
        self.classes: list[str] = preprocessing["label_names"]
        self.shape = model.image_shape
        self.side, _, self.channels = self.shape
        self.stored_size: int | None = model.config["espalier"].get("stored_size", self.side)
        self.network = model.network().to(device)
        self.normalised = engine.Pixels.of(preprocessing["mean"], preprocessing["std"], device)

    def pixels(self, content: bytes) -> np.ndarray:
        """(side, side, channels) uint8 of a picture file: as stored by `prepare`, then as the batches of its training.

        Raises decode.Unreadable.
        """
        frame = Frame(self.side)
        if self.stored_size is None:
            return loading.shown(content, frame, channels=self.channels)
        stored = torch.from_numpy(decode.pixels(content, channels=self.channels, image_size=self.stored_size).copy())
        shown = frame.show(stored.permute(2, 0, 1)[None], None)
        return shown[0].permute(1, 2, 0).numpy()

    def inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """(B, C, H, W) as the network sees pictures (B, side, side, channels) uint8."""
        return self.normalised(torch.from_numpy(pixels).to(self.normalised.mean.device))

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """(B, K) of pictures (B, side, side, channels) uint8."""
        with torch.inference_mode():
            return self.network(self.inputs(pixels)).float().softmax(1).cpu().numpy()


def predict(
    predictor: Predictor,
    paths: Iterable[Path],
    *,
    top: int,
    batch_size: int,
    on_unreadable: Callable[[Path, str], None],
    on_batch: Callable[[list[Path], np.ndarray], None] = lambda paths, pixels: None,
) -> Iterator[Prediction]:
    """The `top` likeliest classes of each picture that can be read; the others are told to `on_unreadable`.

    Pictures are decoded by threads, one batch ahead. on_batch sees what the network sees, pixels (B, side, side, C) uint8.
    """
    for read in _batches(predictor, paths, batch_size):
        for path, problem in ((path, found) for path, found in read if isinstance(found, str)):
            on_unreadable(path, problem)
        if good := [(path, found) for path, found in read if not isinstance(found, str)]:
            names, pixels = [path for path, _ in good], np.stack([found for _, found in good])
            on_batch(names, pixels)
            for path, shares in zip(names, predictor.probabilities(pixels), strict=True):
                order = np.argsort(-shares, kind="stable")[:top]
                yield Prediction(str(path), [predictor.classes[each] for each in order], shares[order].tolist())


def _batches(predictor: Predictor, paths: Iterable[Path], size: int) -> Iterator[list[tuple[Path, Any]]]:
    """Each batch of paths with its pixels, or what is wrong with a file; the next batch is read meanwhile."""
    waiting: list = []
    rest = iter(paths)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while names := list(islice(rest, size)):
            waiting.append((names, [pool.submit(_read, predictor, name) for name in names]))
            if len(waiting) > 1:
                yield _done(*waiting.pop(0))
        for names, futures in waiting:
            yield _done(names, futures)


def _done(names: list[Path], futures: list[Any]) -> list[tuple[Path, Any]]:
    return [(name, future.result()) for name, future in zip(names, futures, strict=True)]


def _read(predictor: Predictor, path: Path) -> np.ndarray | str:
    try:
        return predictor.pixels(path.read_bytes())
    except (OSError, decode.Unreadable) as error:
        return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def find(arguments: Sequence[str], listed: Iterable[str] = ()) -> list[Path]:
    """The files that arguments name: files as they are, folders with all pictures below, globs; "-" stands for `listed`.

    Raises UserError where an argument names nothing.
    """
    return [path for argument in arguments for path in (_lines(listed) if argument == "-" else _named(argument))]


def _lines(listed: Iterable[str]) -> list[Path]:
    return [Path(line.rstrip("\r\n")) for line in listed if line.strip()]


def _named(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in EXTENSIONS and each.is_file())
    elif path.exists():
        return [path]
    else:
        matches = glob.glob(argument, recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        found = sorted(path for path in map(Path, matches) if path.is_file())
    if not found:
        raise UserError(f"{argument}: no picture there; give files, folders, patterns such as 'photos/*.jpg', or - for a list")
    return found
