"""Data sets that torchvision knows how to fetch: the owner's archives, checked by their MD5, kept as they are."""

from collections.abc import Callable
from pathlib import Path

from pipeline.config import UserError


def download(source: str, folder: Path) -> None:
    """Fetch what is not there yet into `folder`. Raises UserError where the owner's site does not give it."""
    from torchvision.datasets.utils import download_url

    folder.mkdir(parents=True, exist_ok=True)
    for url, name, md5 in FILES[source]():
        try:
            download_url(url, str(folder), filename=name, md5=md5)
        except (OSError, RuntimeError) as error:
            line = f"data.download: {name} did not come from {url} ({error}); fetch it by hand into {folder}"
            raise UserError(" ".join(line.split())) from None


def _cifar10() -> list[tuple[str, str, str]]:
    from torchvision.datasets import CIFAR10

    return [(CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5)]


def _cifar100() -> list[tuple[str, str, str]]:
    from torchvision.datasets import CIFAR100

    return [(CIFAR100.url, CIFAR100.filename, CIFAR100.tgz_md5)]


def _svhn() -> list[tuple[str, str, str]]:
    from torchvision.datasets import SVHN

    return [(url, name, md5) for url, name, md5 in (SVHN.split_list[split] for split in ("train", "test"))]


def _flowers102() -> list[tuple[str, str, str]]:
    from torchvision.datasets import Flowers102

    return [(Flowers102._download_url_prefix + name, name, md5) for name, md5 in Flowers102._file_dict.values()]


FILES: dict[str, Callable[[], list[tuple[str, str, str]]]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "flowers102": _flowers102,
}
