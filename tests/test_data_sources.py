"""Every layout that people have gives its own pictures with its own labels, from folders and archives alike."""

import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import DOWNLOADS, UserError
from pipeline.data import decode, sources
from pipeline.data.prepare import prepare
from pipeline.data.sources.download import FILES
from tests import layouts
from tests.layouts import data, encoded

SHARED = Path("../shared/data/cifar10-jpeg")


def found(source: sources.Source) -> layouts.Found:
    return {
        split: {picture.name: source.classes[picture.label] for picture in pictures if picture.read()}
        for split, pictures in source.splits.items()
    }


@pytest.mark.parametrize("wrap", [lambda folder: folder, layouts.zipped, layouts.tarred], ids=["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("name", layouts.FOLDERS)
def test_a_layout_of_files_gives_every_picture_its_label(tmp_path, name, wrap):
    root = tmp_path / "flat"
    root.mkdir()
    expected = layouts.FOLDERS[name](root)
    assert found(sources.read(data(wrap(root), name))) == expected


@pytest.mark.parametrize("name", ["image_folder", "imagenet", "intel", "tiny_imagenet", "chaoyang", "flowers102"])
def test_an_archive_may_wrap_everything_in_one_folder(tmp_path, name):
    (tmp_path / "set").mkdir()
    expected = layouts.FOLDERS[name](tmp_path / "set")
    assert found(sources.read(data(layouts.zipped(tmp_path / "set"), name))) == expected


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(("name", "build"), [(name, build) for name, builds in layouts.PIXELS.items() for build in builds])
def test_a_layout_of_pixels_gives_every_picture_its_label(tmp_path, name, build, archived):
    (tmp_path / "set").mkdir()
    expected = build(tmp_path / "set")
    source = sources.read(data(layouts.tarred(tmp_path / "set") if archived else tmp_path / "set", name))
    for split, (images, labels) in expected.items():
        pictures = list(source.splits[split])
        assert [source.classes[picture.label] for picture in pictures] == labels
        read = np.stack([np.frombuffer(picture.read(), np.uint8).reshape(picture.shape) for picture in pictures])
        assert np.array_equal(read, images)


def test_what_torchvision_fetched_is_read_where_it_lies(tmp_path):
    """The owner's archive, unopened, in the folder that data.path names."""
    layouts.cifar10_python(tmp_path / "set")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as file:
        file.add(tmp_path / "set/cifar-10-batches-py", "cifar-10-batches-py")
    (tmp_path / "raw").mkdir()
    (tmp_path / "cifar-10-python.tar.gz").rename(tmp_path / "raw/cifar-10-python.tar.gz")
    assert len(list(sources.read(data(tmp_path / "raw", "cifar10")).splits["test"])) == 10


@pytest.mark.parametrize("source", DOWNLOADS)
def test_what_can_be_fetched_has_an_address_and_a_checksum(source):
    for url, name, md5 in FILES[source]():
        assert url.startswith("http") and url.endswith(name) and re.fullmatch("[0-9a-f]{32}", md5)


@pytest.mark.parametrize("form", ["struct", "binary"])
@pytest.mark.parametrize("names", [["cat", "dog", "emu"], None])
def test_parquet_shards_are_read_by_split(tmp_path, form, names):
    shards = ["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"]
    for seed, shard in enumerate(shards):
        images = [encoded(100 * seed + row) for row in range(9)]
        layouts.parquet_file(tmp_path / f"{shard}.parquet", images, [0, 1, 2] * 3, names=names, form=form)
    source = sources.read(data(tmp_path, "parquet"))
    assert source.classes == (names or ["0", "1", "2"]) and set(source.splits) == {"train", "test"}
    train = list(source.splits["train"])
    assert [picture.label for picture in train] == [0, 1, 2] * 6
    assert [picture.read() for picture in train] == [encoded(100 * seed + row) for seed in (0, 1) for row in range(9)]


def test_parquet_labels_may_be_words_and_columns_have_other_names(tmp_path):
    layouts.parquet_file(tmp_path / "x.parquet", [encoded(seed) for seed in range(4)], ["dog", "cat", "dog", "cat"])
    source = sources.read(data(tmp_path / "x.parquet", "parquet", image_column="image", label_column="label"))
    assert source.classes == ["cat", "dog"] and [picture.label for picture in source.splits["train"]] == [1, 0, 1, 0]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_grey_parquet_pictures_stay_of_one_channel_and_those_of_a_folder_become_rgb(tmp_path, mode, channels):
    images = []
    for seed in range(40):
        path = tmp_path / f"photos/{'ab'[seed % 2]}/{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        layouts.picture(seed, mode).save(path)
        images.append(path.read_bytes())
    layouts.parquet_file(tmp_path / "x.parquet", images, [0, 1] * 20)
    settings = data(tmp_path / "x.parquet", "parquet")
    assert prepare(sources.read(settings), settings, tmp_path / "one")["image_shape"] == [8, 8, channels]
    settings = data(tmp_path / "photos")
    assert prepare(sources.read(settings), settings, tmp_path / "two")["image_shape"] == [8, 8, 3]


def test_a_path_may_start_at_home_or_here(tmp_path, monkeypatch):
    layouts.image_folder(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert found(sources.read(data(Path("~/photos")))) == found(sources.read(data(Path("photos"))))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/cifar10-jpeg is absent")
def test_a_real_hugging_face_folder_is_read():
    source = sources.read(data(SHARED, "parquet"))
    assert source.classes[:3] == ["airplane", "automobile", "bird"]
    labels = [picture.label for picture in source.splits["test"]]
    assert np.bincount(labels).tolist() == [1000] * 10
    first = next(source.splits["train"])
    assert decode.pixels(first.read(), channels=3).shape == (32, 32, 3) and "automobile" in first.name


# What is not as it should be is one line that names it


def pickled_code(root: Path) -> None:
    layouts.cifar10_python(root)

    class Code:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    for protocol, file in enumerate(["data_batch_1", "data_batch_2"]):
        layouts.write(root / "cifar-10-batches-py" / file, pickle.dumps({"data": Code()}, protocol=2 + protocol))


def escaping_tar(root: Path) -> None:
    layouts.write(root / "evil.png", encoded(1))
    with tarfile.open(root / "x.tar", "w") as file:
        file.add(root / "evil.png", "cat/../../evil.png")


def linked_folder(root: Path) -> None:
    layouts.class_folders(root / "photos", {"train": ""}, ["cat", "dog"])
    (root / "photos/emu").symlink_to(root / "photos/cat")


def table(header: str, *rows: str):
    return lambda root: layouts.write(root / "table.csv", "\n".join([header, *rows]) + "\n")


def shard(labels: list, damage=lambda content: content, **how):
    def build(root: Path) -> None:
        layouts.parquet_file(root / "train.parquet", [encoded(seed) for seed in range(len(labels))], labels, **how)
        (root / "train.parquet").write_bytes(damage((root / "train.parquet").read_bytes()))

    return build


def missing(build, name: str):
    def without(root: Path) -> None:
        build(root)
        (root / name).unlink()

    return without


def changed(build, name: str, content: bytes | str):
    def other(root: Path) -> None:
        build(root)
        layouts.write(root / name, content)

    return other


MISTAKES = {
    "no such path": ("image_folder", lambda root: None, "nowhere", "does not exist; give a folder or an archive"),
    "a file that is no archive": ("image_folder", table("x"), "table.csv", "is neither a folder nor an archive"),
    "an empty folder": ("image_folder", lambda root: None, "", "holds 0 classes; at least 2 are needed"),
    "one class": (
        "image_folder",
        lambda root: layouts.class_folders(root, {"train": ""}, ["cat"]),
        "",
        "holds 1 classes; at least 2 are needed",
    ),
    "empty class folders": (
        "image_folder",
        lambda root: [(root / name).mkdir() for name in "ab"],
        "",
        "no picture that can be used in the train split",
    ),
    "zero test pictures": (
        "image_folder",
        lambda root: [layouts.image_folder(root), *(path.unlink() for path in root.glob("test/*/*"))],
        "",
        "no picture that can be used in the test split",
    ),
    "a class that train has not": (
        "image_folder",
        lambda root: [layouts.image_folder(root), layouts.write(root / "test/emu/1.png", encoded(99))],
        "",
        "no training picture of class emu",
    ),
    "a link to a folder": ("image_folder", linked_folder, "photos", "emu is a link to a folder"),
    "a tar with ../": ("image_folder", escaping_tar, "x.tar", "names 'cat/../../evil.png', outside of itself; refused"),
    "a cut archive": (
        "image_folder",
        lambda root: (root / "x.tar.gz").write_bytes(layouts.tarred(_made(root, layouts.image_folder)).read_bytes()[:3000]),
        "x.tar.gz",
        "is damaged",
    ),
    "no CIFAR": ("cifar10", table("x"), "", "holds no batches.meta or batches.meta.txt, neither in a folder nor"),
    "a CIFAR batch less": (
        "cifar10",
        missing(layouts.cifar10_python, "cifar-10-batches-py/data_batch_3"),
        "",
        "data_batch_3 is missing or damaged",
    ),
    "a cut CIFAR batch": (
        "cifar10",
        changed(layouts.cifar10_binary, "cifar-10-batches-bin/data_batch_2.bin", b"x" * 4000),
        "",
        "data_batch_2.bin is not what CIFAR holds",
    ),
    "a pickle that runs code": ("cifar10", pickled_code, "", "asks for (posix|nt).system, which is refused"),
    "no SVHN": (
        "svhn",
        changed(layouts.svhn, "test_32x32.mat", b"x" * 500),
        "",
        "test_32x32.mat is damaged or holds no X and y",
    ),
    "Tiny without annotations": (
        "tiny_imagenet",
        missing(layouts.tiny_imagenet, "val/val_annotations.txt"),
        "",
        "val/val_annotations.txt is missing",
    ),
    "Tiny with another class": (
        "tiny_imagenet",
        changed(layouts.tiny_imagenet, "wnids.txt", "n1\nn02124075\n"),
        "",
        "which wnids.txt does not name|unknown class",
    ),
    "ImageNet without val": (
        "imagenet",
        lambda root: layouts.class_folders(root, {"train": "train/"}, ["a", "b"]),
        "",
        "has no folder val/ of class folders",
    ),
    "Intel without test": ("intel", lambda root: (root / "seg_train").mkdir(), "", "has no folder seg_test/, as intel has"),
    "Chaoyang labels that are no list": (
        "chaoyang",
        changed(layouts.chaoyang, "train.json", "{}x"),
        "",
        "train.json is no list of names and labels",
    ),
    "labels beyond the classes": (
        "chaoyang",
        changed(layouts.chaoyang, "test.json", '[{"name": "test/1.JPG", "label": 7}]'),
        "",
        r"1 labels are not among the 4 classes \(0 to 3\): test/1.JPG has 7",
    ),
    "Flowers with too few labels": (
        "flowers102",
        lambda root: [layouts.flowers102(root), layouts.savemat(root / "imagelabels.mat", {"labels": [[1, 2]]})],
        "",
        "names pictures for which imagelabels.mat has no label",
    ),
    "a table without labels": ("csv", table("path,klass", "a.png,x"), "", "has no column 'label', only path, klass"),
    "a table without rows": ("csv", table("path,label"), "", "table.csv has no rows"),
    "a table with an empty label": ("csv", table("path,label", "a.png,"), "", "1 rows have no label, the first is row 0"),
    "a table with an odd split": ("csv", table("path,label,split", "a.png,x,dev", "b.png,y,dev"), "", "split 'dev' is none of"),
    "no table": ("csv", lambda root: None, "", "holds 0 .csv files at its top"),
    "a table that is no text": (
        "csv",
        lambda root: (root / "t.csv").write_bytes(b"\xff\xfe\x00"),
        "",
        "t.csv is not readable as text in UTF-8",
    ),
    "a table that leaves its folder": (
        "csv",
        table("path,label", "../a.png,x", "/etc/passwd,y"),
        "",
        r"2 unreadable: \.\./a.png \(no such file\); /etc/passwd",
    ),
    "no parquet": ("parquet", lambda root: None, "", "no .parquet file and no folder that holds some"),
    "a corrupt shard": ("parquet", shard([0, 1] * 9, lambda content: content[:-9]), "", "train.parquet is damaged"),
    "a shard with a hole": (
        "parquet",
        shard([0, 1] * 90, lambda content: content[:99] + bytes(9000) + content[9099:], form="binary"),
        "",
        "damaged|unreadable",
    ),
    "parquet without labels": (
        "parquet",
        shard([0.5, 1.5]),
        "",
        "none of image, label seems to be the label column; name it in",
    ),
    "parquet with two labels": (
        "parquet",
        lambda root: [
            shard([0, 1])(root),
            pq.write_table(
                (one := pq.read_table(root / "train.parquet"))
                .rename_columns(["image", "fine"])
                .append_column("coarse", one[1]),
                root / "train.parquet",
            ),
        ],
        "",
        "fine, coarse could each be the label column; name it in data.label_column",
    ),
    "parquet with an unknown column": ("parquet", shard([0, 1]), "", "data.label_column is 'kind'; there are image, label"),
    "parquet with an empty label": ("parquet", shard([0, None, 1]), "", "1 rows have no label, the first is row 1"),
    "parquet labels out of range": (
        "parquet",
        shard([0, 1, 2, -1], names=["cat", "dog"]),
        "",
        r"2 labels are not among the 2 classes \(0 to 1\): train.parquet",
    ),
    "parquet labels of other words": (
        "parquet",
        shard(["cat", "cow"], names=["cat", "dog"]),
        "",
        "label 'cow' is not among the classes cat, dog",
    ),
    "parquet of the test split alone": (
        "parquet",
        lambda root: [layouts.parquet_file(root / f"test-{i}.parquet", [encoded(i)], [i]) for i in range(2)],
        "",
        "holds no train file, only test-0.parquet",
    ),
}


def _made(root: Path, build) -> Path:
    (root / "set").mkdir()
    build(root / "set")
    return root / "set"


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_is_one_line(tmp_path, name, monkeypatch):
    source, build, path, line = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").mkdir()
    build(tmp_path / "root")
    more = {"label_column": "kind"} if "unknown column" in name else {}
    settings = data(tmp_path / "root" / path, source, **more)
    with pytest.raises(UserError, match=line) as error:
        prepare(sources.read(settings), settings, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"root"}, "something was left behind, or code was run"
