"""One reader per layout in which people have their pictures.

A reader names the classes and yields the pictures of each split, one at a time, so that memory holds few of them.
Adding a layout is a function and an entry in SOURCES.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.config import Data
from pipeline.data.sources import cifar, digits, folders, matlab, parquet, tables
from pipeline.data.sources.base import Picture, Source
from pipeline.data.sources.download import download

__all__ = ["SOURCES", "Picture", "Source", "read"]

SOURCES: dict[str, Callable[[Data], Source]] = {
    "digits": digits.digits,
    "image_folder": folders.image_folder,
    "parquet": parquet.parquet,
    "csv": tables.csv_table,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "svhn": matlab.svhn,
    "tiny_imagenet": folders.tiny_imagenet,
    "intel": folders.intel,
    "chaoyang": tables.chaoyang,
    "flowers102": matlab.flowers102,
    "imagenet": folders.imagenet,
}


def read(data: Data) -> Source:
    """Open the source that the settings name. Raises UserError where it is not what it should be."""
    data = data.model_copy(update={"path": str(Path(data.path).expanduser())})
    if data.download:
        download(data.source, Path(data.path))
    return SOURCES[data.source](data)
