"""What a person sees while a network trains: a bar, and a line per epoch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over all images of a training; where the output is no terminal, only the lines."""

    def __init__(self, name: str, epochs: int, bar: tqdm) -> None:
        self._name, self._epochs, self._bar = name, epochs, bar

    def images(self, count: int) -> None:
        """So many more pictures were trained on."""
        self._bar.update(count)

    def note(self, line: str) -> None:
        """Something to know about how it is trained."""
        tqdm.write(f"{self._name} {line}", file=sys.stdout)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch has ended."""
        self._bar.update(row["images_seen"] - self._bar.n)
        beta = f" beta {row['beta']:.2f} guidance_loss {row['guidance_loss']:.4f}" if row["beta"] else ""
        measured = [key for key in ("train_loss", "distillation_loss", "val_loss", "val_accuracy") if key in row]
        tqdm.write(
            f"{self._name} epoch {row['epoch']}/{self._epochs} {' '.join(f'{key} {row[key]:.4f}' for key in measured)} "
            f"lr {row['learning_rate']:.2e}{beta} {row['images_per_second']:.0f} images/s",
            file=sys.stdout,
        )


@contextmanager
def progress(name: str, *, epochs: int, images: int) -> Iterator[Progress]:
    """Show a training of `epochs` epochs over `images` pictures in all."""
    with tqdm(total=images, desc=name, unit=" images", disable=None, leave=False, mininterval=0.5, smoothing=0.1) as bar:
        yield Progress(name, epochs, bar)
