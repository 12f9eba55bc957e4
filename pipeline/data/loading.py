"""Where the pictures of a training come from, batch by batch: one interface, the same pixels from each.

Resident  the whole split is one tensor on the training device
Stored    rows of a memory-mapped file are read and copied to the device, ahead of need
Encoded   the files as their owner encoded them are decoded by threads, as many as torch has, ahead of need

The order of the pictures is free in each of them, so it can be exactly the same for any number of workers. That is why
large data is a file that all nodes see, and not a stream of shards: the file system has to serve random reads of one
picture's size, as local disks, NFS, Lustre and the like do.
"""

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.config import UserError
from pipeline.data import decode, prepared
from pipeline.data.augment.geometry import Frame

logger = logging.getLogger(__name__)

CARRIED_BYTES = 2**31  # a split of up to this size travels to the workers, a larger one is opened by each
AHEAD = 2  # batches that are read before they are needed
FREE_SHARE = 0.5  # of the device's free memory that resident pictures may take


@dataclass(frozen=True)
class Pictures:
    """A split, or two after each other, as a job carries it: pixels (N, H, W, C) uint8, or files that every worker can open."""

    pixels: np.ndarray | None
    labels: np.ndarray
    paths: tuple[str, ...] = ()
    channels: int = 3  # of pictures that have to be decoded


@dataclass(frozen=True)
class Take:
    """Rows (B,) of a split that are needed at once, and the numbers (B, draws) that say how they are cropped, if any."""

    rows: np.ndarray
    chances: np.ndarray | None = None


class Source(Protocol):
    """Pictures that can be fetched in any order."""

    name: ClassVar[str]  # for the log

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the device."""

    def fetch(self, takes: Iterable[Take], frame: Frame) -> Iterator[Tensor]:
        """For each take its pictures (B, C, side, side) uint8, on the device, each channel a plane in memory."""


@dataclass(frozen=True)
class Resident:
    """All pixels (N, H, W, C) uint8 on the device."""

    pixels: Tensor
    labels: Tensor
    name: ClassVar[str] = "resident"

    def fetch(self, takes: Iterable[Take], frame: Frame) -> Iterator[Tensor]:
        for take in takes:
            rows = torch.from_numpy(take.rows).to(self.pixels.device)
            yield frame.show(_planes(self.pixels.index_select(0, rows)), take.chances)


@dataclass(frozen=True)
class Stored:
    """Pixels in a file, of which `read(rows)` gives some (B, H, W, C) uint8; labels (N,) on the device."""

    read: Callable[[np.ndarray], np.ndarray]
    labels: Tensor
    name: ClassVar[str] = "streaming"

    def fetch(self, takes: Iterable[Take], frame: Frame) -> Iterator[Tensor]:
        def begin(pool: ThreadPoolExecutor, take: Take) -> list[Future]:
            return [pool.submit(self.read, take.rows)]

        for take, (pixels,) in _ahead(takes, begin, threads=1):
            yield frame.show(_planes(torch.from_numpy(pixels).to(self.labels.device)), take.chances)


@dataclass(frozen=True)
class Encoded:
    """Files as their owner encoded them: `read(row)` gives the bytes of one."""

    read: Callable[[int], bytes]
    labels: Tensor
    channels: int
    threads: int
    name: ClassVar[str] = "streaming, decoded"

    def fetch(self, takes: Iterable[Take], frame: Frame) -> Iterator[Tensor]:
        def begin(pool: ThreadPoolExecutor, take: Take) -> list[Future]:
            chances = [None] * len(take.rows) if take.chances is None else take.chances[:, None]
            return [pool.submit(self._show, int(row), frame, own) for row, own in zip(take.rows, chances, strict=True)]

        for _, pixels in _ahead(takes, begin, threads=self.threads):
            yield _planes(torch.from_numpy(np.stack(pixels)).to(self.labels.device))

    def _show(self, row: int, frame: Frame, chances: np.ndarray | None) -> np.ndarray:
        return shown(self.read(row), frame, chances, channels=self.channels)


def shown(content: bytes, frame: Frame, chances: np.ndarray | None = None, *, channels: int) -> np.ndarray:
    """(side, side, channels) uint8 of a picture file that was not resized before. Raises decode.Unreadable."""
    image, _ = decode.decode(content)
    ((top, left, height, width),) = frame.boxes(np.array([image.height]), np.array([image.width]), chances).tolist()
    part = image.crop((left, top, left + width, top + height))
    return decode.to_array(part.resize((frame.side, frame.side), Image.Resampling.BICUBIC), channels=channels)


def _ahead(
    takes: Iterable[Take], begin: Callable[[ThreadPoolExecutor, Take], list[Future]], *, threads: int
) -> Iterator[tuple[Take, list[np.ndarray]]]:
    """Each take with its results, while those of the next ones are worked on."""
    waiting: deque[tuple[Take, list[Future]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for take in takes:
            waiting.append((take, begin(pool, take)))
            if len(waiting) > AHEAD:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in waiting:
            yield ready, [future.result() for future in futures]


def pictures(path: Path, *, channels: int) -> Pictures:
    """A prepared split as a job carries it; only a small one travels."""
    split = prepared.read_split(path)
    carried = split.image_shape and split.pixels.nbytes <= CARRIED_BYTES
    return Pictures(split.pixels if carried else None, split.labels, (str(path.resolve()),), channels)


def joined(first: Pictures, second: Pictures) -> Pictures:
    """The pictures of both, after each other."""
    labels, paths = np.concatenate([first.labels, second.labels]), first.paths + second.paths
    if first.pixels is None or second.pixels is None:
        return Pictures(None, labels, paths, first.channels)
    return Pictures(np.concatenate([first.pixels, second.pixels]), labels, paths, first.channels)


def open_source(pictures: Pictures, device: torch.device, *, residence: str = "auto") -> Source:
    """The pictures for a training on the device.

    residence: "resident", "streaming" or "auto", which is resident where the split fits.
    """
    labels = _tensor(pictures.labels).to(device)
    if pictures.pixels is None:
        splits = [prepared.read_split(Path(path)) for path in pictures.paths]
        if not splits[0].image_shape:
            if residence == "resident":
                raise UserError("cluster.data is resident, but data.image_size is null: pictures are decoded batch by batch")
            return Encoded(partial(_file, splits), labels, pictures.channels, torch.get_num_threads())
    parts = [split.pixels for split in splits] if pictures.pixels is None else [pictures.pixels]
    if residence == "resident" or (residence == "auto" and _fits(sum(part.nbytes for part in parts), device)):
        return Resident(_tensor(parts[0] if len(parts) == 1 else np.concatenate(parts)).to(device), labels)
    return Stored(partial(_rows, parts), labels)


def _file(splits: Sequence[prepared.Split], row: int) -> bytes:
    """A row of several splits after each other."""
    for split in splits:
        if row < len(split):
            return split.encoded(row)
        row -= len(split)
    raise IndexError(row)


def _rows(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows (B,) of several arrays after each other, read where they lie."""
    if len(parts) == 1:
        return parts[0][rows]
    starts = np.cumsum([0, *map(len, parts)])
    found = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    for part, start in zip(parts, starts, strict=False):
        mine = (start <= rows) & (rows < start + len(part))
        found[mine] = part[rows[mine] - start]
    return found


def _planes(images: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W), also in memory."""
    return images.permute(0, 3, 1, 2).contiguous()


def _fits(size: int, device: torch.device) -> bool:
    if device.type == "cuda":
        return size <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]
    return size <= FREE_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # torch cannot keep a read-only array from being written to; nothing here does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
