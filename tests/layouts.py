"""Small data sets in the layouts in which people have the large ones; each returns what a reader should find.

What is found: split -> name of a picture -> its class.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from pipeline.config import Data

Found = dict[str, dict[str, str]]


def data(path: Path, source: str = "image_folder", **changes) -> Data:
    plain = {"source": source, "path": str(path), "image_size": 8, "validation_fraction": 0.25}
    return Data(**{**plain, "test_fraction": 0.2, "split_seed": 0, "unreadable": "error", **changes})


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


def encoded(seed: int, kind: str = "PNG", **how) -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, kind, **how)
    return content.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def fill(root: Path, found: Found) -> Found:
    """Write a picture for every name, each with a content of its own."""
    for seed, name in enumerate(name for names in found.values() for name in names):
        write(root / name, encoded(seed))
    return found


def class_folders(root: Path, folders: dict[str, str], classes: list[str], suffix: str = ".png", below: str = "") -> Found:
    names = {
        split: {f"{folder}{label}/{below}{index}{suffix}": label for label in classes for index in range(5)}
        for split, folder in folders.items()
    }
    return fill(root, names)


def image_folder(root: Path) -> Found:
    write(root / "notes.txt", "litter")
    write(root / "train/cat/.DS_Store", "litter")
    return class_folders(
        root, {"train": "train/", "validation": "val/", "test": "test/"}, ["cat", "dög, a very " + "long name" * 20]
    )


def imagenet(root: Path) -> Found:
    return class_folders(root, {"train": "train/", "test": "val/"}, ["n01440764", "n01443537"], ".JPEG")


def intel(root: Path) -> Found:
    write(root / "seg_pred/seg_pred/5.jpg", encoded(1000))
    return class_folders(root, {"train": "seg_train/seg_train/", "test": "seg_test/seg_test/"}, ["buildings", "sea"])


def tiny_imagenet(root: Path) -> Found:
    wnids = ["n02124075", "n01443537"]
    train = {f"train/{wnid}/images/{wnid}_{i}.JPEG": wnid for wnid in wnids for i in range(5)}
    test = {f"val/images/val_{i}.JPEG": wnids[i % 2] for i in range(4)}
    write(root / "wnids.txt", "\n".join(wnids) + "\n")
    write(root / "words.txt", "n01443537\tgoldfish\n")
    rows = [f"{Path(name).name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in test.items()]
    write(root / "val/val_annotations.txt", "".join(rows))
    write(root / "test/images/test_0.JPEG", encoded(1000))
    return fill(root, {"train": train, "test": test})


def chaoyang(root: Path) -> Found:
    classes = ["normal", "serrated", "adenocarcinoma", "adenoma"]
    found = {split: {f"{split}/{i}.JPG": classes[i % 4] for i in range(12)} for split in ("train", "test")}
    for split, pictures in found.items():
        write(root / f"{split}.json", json.dumps([{"name": n, "label": classes.index(c)} for n, c in pictures.items()]))
    return fill(root, found)


def flowers102(root: Path) -> Found:
    from torchvision.datasets import Flowers102

    labels = np.array([[1 + index % 102 for index in range(204)]], np.uint8)
    numbers = {"train": np.arange(1, 103), "validation": np.arange(103, 150), "test": np.arange(150, 205)}
    savemat(root / "imagelabels.mat", {"labels": labels})
    savemat(
        root / "setid.mat", {key: numbers[split][None] for key, split in zip(("trnid", "valid", "tstid"), numbers, strict=True)}
    )
    found = {
        split: {f"image_{one:05}.jpg": Flowers102.classes[labels[0, one - 1] - 1] for one in ones}
        for split, ones in numbers.items()
    }
    fill(root / "jpg", found)
    return found


def csv(root: Path) -> Found:
    found = {split: {f"pictures/{split}{i}.png": "ab"[i % 2] for i in range(8)} for split in ("train", "validation", "test")}
    rows = [f"{name},{label},{split}\n" for split, names in found.items() for name, label in names.items()]
    write(root / "table.csv", "\ufeffpath,label,split\n" + "".join(rows))
    return fill(root, found)


FOLDERS = {
    "image_folder": image_folder,
    "imagenet": imagenet,
    "intel": intel,
    "tiny_imagenet": tiny_imagenet,
    "chaoyang": chaoyang,
    "flowers102": flowers102,
    "csv": csv,
}


def zipped(folder: Path) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, Path("wrapped", path.relative_to(folder)) if folder.name != "flat" else path.relative_to(folder))
    return archive


def tarred(folder: Path) -> Path:
    archive = folder.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, ".")
    return archive


# Sources of pixels: split -> (N, 32, 32, 3) uint8 and class names (N,)
Pixels = dict[str, tuple[np.ndarray, list[str]]]


def pixels(counts: dict[str, int], classes: list[str]) -> Pixels:
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (count, 32, 32, 3), np.uint8), [classes[i % len(classes)] for i in range(count)])
        for split, count in counts.items()
    }


def rows_of(images: np.ndarray) -> np.ndarray:
    """(N, 3072) channels first, as CIFAR stores them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def python_2_pickle(found: dict[str, object]) -> bytes:
    """A pickle as Python 2 wrote CIFAR's: protocol 2, byte strings, arrays by numpy.core.multiarray._reconstruct."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def array(value: np.ndarray) -> bytes:
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
        dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        shape = b"(" + b"".join(map(number, value.shape)) + b"t"
        return empty + b"(" + number(1) + shape + dtype + b"I00\n" + text(value.tobytes()) + b"tb"

    def any_of(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(any_of, value)) + b"e"
        return number(value) if isinstance(value, int) else text(str(value).encode())

    items = b"".join(text(key.encode()) + any_of(value) for key, value in found.items())
    return b"\x80\x02}(" + items + b"u."


def cifar10_python(root: Path, dump=python_2_pickle) -> Pixels:
    found = pixels({"train": 50, "test": 10}, names := [f"c{i}" for i in range(10)])
    base = root / "cifar-10-batches-py"
    for file, split, rows in [
        *((f"data_batch_{b + 1}", "train", slice(10 * b, 10 * b + 10)) for b in range(5)),
        ("test_batch", "test", slice(0, 10)),
    ]:
        images, labels = found[split]
        numbers = [names.index(label) for label in labels[rows]]
        write(base / file, dump({"batch_label": file, "labels": numbers, "data": rows_of(images[rows])}))
    write(base / "batches.meta", dump({"num_cases_per_batch": 10, "label_names": names}))
    return found


def cifar10_repickled(root: Path) -> Pixels:
    return cifar10_python(root, dump=lambda found: pickle.dumps(found, protocol=2))


def cifar10_binary(root: Path) -> Pixels:
    found = pixels({"train": 50, "test": 10}, names := [f"c{i}" for i in range(10)])
    files = {f"data_batch_{b + 1}.bin": ("train", slice(10 * b, 10 * b + 10)) for b in range(5)} | {
        "test_batch.bin": ("test", slice(0, 10))
    }
    for file, (split, rows) in files.items():
        numbers = np.array([[names.index(label)] for label in found[split][1][rows]], np.uint8)
        write(root / "cifar-10-batches-bin" / file, np.hstack([numbers, rows_of(found[split][0][rows])]).tobytes())
    write(root / "cifar-10-batches-bin/batches.meta.txt", "\n".join(names) + "\n\n")
    return found


def cifar100_python(root: Path) -> Pixels:
    found = pixels({"train": 100, "test": 100}, names := [f"fine{i:02}" for i in range(100)])
    for split, (images, labels) in found.items():
        fine = [names.index(label) for label in labels]
        content = {"fine_labels": fine, "coarse_labels": [label // 5 for label in fine], "data": rows_of(images)}
        write(root / "cifar-100-python" / split, python_2_pickle(content))
    write(root / "cifar-100-python/meta", python_2_pickle({"fine_label_names": names, "coarse_label_names": ["x"]}))
    return found


def cifar100_binary(root: Path) -> Pixels:
    found = pixels({"train": 100, "test": 100}, names := [f"fine{i:02}" for i in range(100)])
    for split, (images, labels) in found.items():
        numbers = np.array([[names.index(label) // 5, names.index(label)] for label in labels], np.uint8)
        write(root / "cifar-100-binary" / f"{split}.bin", np.hstack([numbers, rows_of(images)]).tobytes())
    write(root / "cifar-100-binary/fine_label_names.txt", "\n".join(names) + "\n")
    return found


def svhn(root: Path) -> Pixels:
    found = pixels({"train": 30, "extra": 10, "test": 10}, [str(i) for i in range(10)])
    for split, (images, labels) in found.items():
        numbers = np.array([[int(label) or 10] for label in labels], np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": numbers}, do_compression=True)
    train, extra = found["train"], found.pop("extra")
    return found | {"train": (np.concatenate([train[0], extra[0]]), train[1] + extra[1])}


PIXELS = {
    "cifar10": [cifar10_python, cifar10_repickled, cifar10_binary],
    "cifar100": [cifar100_python, cifar100_binary],
    "svhn": [svhn],
}


def parquet_file(path: Path, images: list, labels: list, *, names: list[str] | None = None, form: str = "struct") -> None:
    """A file as Hugging Face writes it: encoded pictures, labels, and the names of the classes in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "struct":
        column = pa.array([image and {"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
                          pa.struct({"bytes": pa.binary(), "path": pa.string()}))  # fmt: skip
    else:
        column = pa.array(images, pa.binary())
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    pq.write_table(pa.table({"image": column, "label": labels}).replace_schema_metadata(metadata), path, row_group_size=7)
