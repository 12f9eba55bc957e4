"""Prepared data: every picture once, the same whatever the order of files, and nothing half-read."""

import contextlib
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.config import Data, UserError
from pipeline.data import decode, prepared, sources, splits
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Split
from pipeline.data.rows import FACTS, Rows
from pipeline.data.sources import Picture, Source
from tests.layouts import data, encoded, picture

CLASSES = ["cat", "dog", "emu", "fox"]


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 pictures, with the litter that such folders gather."""
    for label, name in enumerate(["cat", "dog"]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(20):
            picture(100 * label + index).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos/cat/.DS_Store").write_bytes(b"litter")
    (tmp_path / "photos/dog/notes.txt").write_text("litter")
    (tmp_path / "photos/.hidden").mkdir()
    return tmp_path / "photos"


def made(settings: Data, out: Path) -> tuple[dict, dict[str, Split]]:
    card = prepare(sources.read(settings), settings, out)
    return card, {name: prepared.read_split(out / f"{name}.arrow") for name in prepared.SPLITS}


def test_every_picture_is_in_exactly_one_split_and_classes_keep_their_share(folder, tmp_path):
    card, splits = made(data(folder), tmp_path / "out")
    names = [name for split in splits.values() for name in split.names]
    assert sorted(names) == sorted(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(20))
    assert card["class_counts"] == {
        "train": {"cat": 12, "dog": 12},
        "validation": {"cat": 4, "dog": 4},
        "test": {"cat": 4, "dog": 4},
    }
    for split in splits.values():
        assert all(name.startswith(card["classes"][label]) for name, label in zip(split.names, split.labels, strict=True))


def test_names_and_order_of_files_do_not_matter(folder, tmp_path):
    first, _ = made(data(folder), tmp_path / "first")
    for name in ("cat", "dog"):
        files = sorted((folder / name).glob("*.png"))
        random.Random(0).shuffle(files)
        for index, file in enumerate(files):
            file.rename(folder / name / f"renamed-{index:03}.png")
    second, _ = made(data(folder), tmp_path / "second")
    assert first["fingerprint"] == second["fingerprint"]


def test_another_split_seed_is_another_split(folder, tmp_path):
    cards = [made(data(folder, split_seed=seed), tmp_path / str(seed))[0] for seed in (0, 1)]
    assert cards[0]["fingerprint"] != cards[1]["fingerprint"]


def test_the_split_does_not_depend_on_the_size_that_is_prepared(folder, tmp_path):
    tests = [made(data(folder, image_size=size), tmp_path / str(size))[1]["test"] for size in (8, 16)]
    assert tests[0].names == tests[1].names


def test_given_splits_are_kept(folder, tmp_path):
    root = tmp_path / "given"
    shutil.copytree(folder, root / "train")
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        picture(999 + len(name) + ord(name[0])).save(root / "test" / name / "only.png")
    card, splits = made(data(root), tmp_path / "out")
    assert card["counts"] == {"train": 30, "validation": 10, "test": 2}
    assert sorted(splits["test"].names) == ["test/cat/only.png", "test/dog/only.png"]


# Low-data studies


@given(
    sizes=st.lists(st.integers(5, 40), min_size=2, max_size=4),
    fractions=st.tuples(*[st.floats(0.01, 1)] * 2),
    seed=st.integers(0, 99),
)
def test_a_smaller_part_of_train_lies_within_a_larger_and_classes_keep_their_share(sizes, fractions, seed):
    rows = labelled([label for label, size in enumerate(sizes) for _ in range(size)])
    less, more = [
        splits.fewer(rows, CLASSES[: len(sizes)], data(Path(), train_fraction=part, split_seed=seed))
        for part in sorted(fractions)
    ]
    assert set(less.names) <= set(more.names)
    assert np.bincount(less.facts["label"]).tolist() == [max(1, round(min(fractions) * size)) for size in sizes]


def test_a_number_per_class_is_nested_too_and_one_too_many_is_refused(folder, tmp_path):
    few, more = [made(data(folder, train_per_class=count), tmp_path / str(count)) for count in (3, 7)]
    assert few[0]["class_counts"]["train"] == {"cat": 3, "dog": 3}
    assert set(few[1]["train"].names) < set(more[1]["train"].names) and few[1]["test"].names == more[1]["test"].names
    with pytest.raises(UserError, match=r"^data.train_per_class is 13, but class 'cat' has 12 training pictures$"):
        made(data(folder, train_per_class=13), tmp_path / "out")


# Duplicates


def labelled(labels: list[int], contents: list[int] | None = None) -> Rows:
    """Rows of these labels, each of a content of its own, or of the given ones."""
    facts = np.zeros(len(labels), FACTS)
    facts["label"] = labels
    facts["digest"] = [f"{content:016}" for content in contents or range(len(labels))]
    return Rows(facts, [f"picture {row}" for row in range(len(labels))])


@given(st.lists(st.integers(0, 12), min_size=30, max_size=60), st.floats(0.05, 0.6), st.integers(0, 99))
def test_a_cut_never_parts_equal_pictures(contents, fraction, seed):
    assume(len(set(contents)) > 8)
    kept, cut = splits.cut(labelled([0] * len(contents), contents), fraction, ["only"], seed=seed, part="test")
    assert not set(kept.facts["digest"]) & set(cut.facts["digest"])
    assert sorted(kept.names + cut.names) == sorted(f"picture {row}" for row in range(len(contents)))


@pytest.fixture
def repetitive(folder, tmp_path):
    """A test and a validation picture are in train too, one train picture is there twice, one as a cat and a dog."""
    root = tmp_path / "repetitive"
    shutil.copytree(folder, root / "train")
    for index, split in enumerate(["test", "val"]):
        shutil.copytree(folder, root / split, ignore=lambda _, names: [name for name in names if "." in name])
        for label, name in enumerate(["cat", "dog"]):
            picture(1000 + 10 * index + label).save(root / split / name / "own.png")
        shutil.copy(root / "train/cat" / f"{index}.png", root / split / "cat/copy.png")
    shutil.copy(root / "train/cat/7.png", root / "train/cat/seven.png")
    shutil.copy(root / "train/cat/8.png", root / "train/dog/eight.png")
    return root


def test_duplicates_are_named(repetitive, tmp_path):
    card, splits = made(data(repetitive), tmp_path / "out")
    assert card["duplicates"] == {
        "across": [
            ["train: train/cat/0.png", "test: test/cat/copy.png"],
            ["train: train/cat/1.png", "validation: val/cat/copy.png"],
        ],
        "within": [
            ["train: train/cat/7.png", "train: train/cat/seven.png"],
            ["train: train/cat/8.png", "train: train/dog/eight.png"],
        ],
        "conflicting": [["train: train/cat/8.png as cat", "train: train/dog/eight.png as dog"]],
    }
    assert (
        "the same picture is in several splits, 2 times: train: train/cat/0.png = test: test/cat/copy.png; "
        in card["problems"][0]
    )
    assert len(splits["train"]) == 42


def test_dropped_duplicates_are_train_pictures_and_named(repetitive, tmp_path):
    card, splits = made(data(repetitive, duplicates="drop"), tmp_path / "out")
    assert card["dropped"] == [
        ["train: train/cat/0.png as cat", "test: test/cat/copy.png as cat"],
        ["train: train/cat/1.png as cat", "validation: val/cat/copy.png as cat"],
        ["train: train/cat/seven.png as cat", "train: train/cat/7.png as cat"],
        ["train: train/dog/eight.png as dog", "train: train/cat/8.png as cat"],
    ]
    assert not any(card["duplicates"].values()) and card["counts"] == {"train": 38, "validation": 3, "test": 3}


def test_a_class_that_is_dropped_whole_is_refused(repetitive, tmp_path):
    for index in range(20):
        (repetitive / f"train/dog/{index}.png").rename(repetitive / f"test/dog/{index}.png")
    with pytest.raises(UserError, match="^no training picture of class dog$"):
        made(data(repetitive, duplicates="drop"), tmp_path / "out")


def test_refused_duplicates_are_one_line(repetitive, tmp_path):
    with pytest.raises(UserError, match=r"^5 duplicates: train: train/cat/0.png = test: test/cat/copy.png; .+ drop or warn$"):
        made(data(repetitive, duplicates="error"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Pictures


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb_of_the_size(mode):
    image = picture(1).convert("L") if mode == "I;16" else picture(1).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    content = io.BytesIO()
    image.save(content, "TIFF")
    pixels = decode.pixels(content.getvalue(), channels=3, image_size=8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert 20 < pixels.mean() < 235


def test_a_picture_is_turned_upright():
    flat = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    flat.paste((255, 255, 255), (0, 0, 8, 4))  # white above black
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    content = io.BytesIO()
    flat.save(content, "PNG", exif=exif)
    assert decode.pixels(content.getvalue(), channels=3, image_size=8)[0].max() == 0


def saved(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **how)
    return content.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG file that promises so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + GOOD[33:]


GOOD = encoded(5)
UNREADABLE = {
    "empty.png": (b"", "not a picture"),
    "text.png": (b"not a picture", "not a picture"),
    "page.jpg": (b"<html>404</html>", "not a picture"),
    "cut.jpg": (encoded(5, "JPEG")[:400], "[Tt]runcated"),
    "cut.png": (GOOD[:200], "."),
    "header.png": (GOOD[:20], "."),
    "noise.png": (b"\x89PNG\r\n\x1a\n" + os.urandom(50), "."),
    "bomb.png": (header_of(20_000, 20_000), "decompression bomb|20000 x 20000 pixels, more than"),
    "large.png": (header_of(10_000, 10_000), "10000 x 10000 pixels, more than 89,478,485"),
    "float.tif": (saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "32-bit pixels"),
}
READABLE = {
    "one pixel.png": saved(Image.new("RGB", (1, 1), "red")),
    "wide.png": saved(picture(6, size=(300, 2))),
    "cmyk.jpg": saved(picture(7, "CMYK"), "JPEG"),
    "sixteen bits.png": saved(Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
    "palette with transparency.png": saved(picture(8, "P"), transparency=3),
    "rgba.webp": saved(picture(9, "RGBA"), "WEBP"),
    "grey.jpg": saved(picture(10, "L"), "JPEG"),
    "moving.gif": saved(picture(11, "P"), "GIF", save_all=True, append_images=[picture(12, "P")]),
    "żółw, 亀, " + "very long " * 20 + ".png": encoded(13),
    "UPPER.PNG": encoded(14),
}


@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), st.dictionaries(st.integers(0, 400), st.integers(0, 255))
)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_a_picture_or_unreadable(kind, changes):
    content = bytearray(encoded(5, kind))
    for place, value in changes.items():
        content[place % len(content)] = value
    with contextlib.suppress(decode.Unreadable):
        assert decode.pixels(bytes(content), channels=3, image_size=8).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_decoded_is_one_line(folder, tmp_path, name):
    content, reason = UNREADABLE[name]
    (folder / "cat" / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"^1 unreadable: cat/{name} \(.*({reason}).*\); mend or remove, or set data.unreadable: skip$"
    ):
        made(data(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_decoded_is_skipped_counted_and_named_and_the_rest_is_kept(folder, tmp_path):
    for name, content in READABLE.items():
        (folder / "cat" / name).write_bytes(content)
    for name, (content, _) in UNREADABLE.items():
        (folder / "dog" / name).write_bytes(content)
    (tmp_path / "outside.png").write_bytes(encoded(15))
    (folder / "dog/link out.png").symlink_to(tmp_path / "outside.png")
    (folder / "dog/link to nothing.png").symlink_to(folder / "nothing.png")
    (folder / "cat/link inside.png").symlink_to("0.png")
    os.mkfifo(folder / "dog/pipe.png")
    os.fsencode(folder / "cat")
    Path(os.fsdecode(os.fsencode(folder) + b"/cat/\xff latin.png")).write_bytes(encoded(16))
    card, splits = made(data(folder, unreadable="skip"), tmp_path / "out")
    skipped = {entry["name"]: entry["reason"] for entry in card["unreadable"]}
    assert skipped.keys() == {f"dog/{name}" for name in [*UNREADABLE, "link out.png", "link to nothing.png", "pipe.png"]}
    assert skipped["dog/link out.png"] == "a link out of the folder" and skipped["dog/pipe.png"] == "no plain file"
    names = {name for split in splits.values() for name in split.names}
    assert names >= {f"cat/{name}" for name in [*READABLE, "link inside.png", "\\udcff latin.png"]} and len(names) == 52
    assert any(line.startswith("files were skipped as unreadable, 13 times: ") for line in card["problems"])


def test_a_class_too_small_to_split_is_refused(folder, tmp_path):
    (folder / "emu").mkdir()
    picture(77).save(folder / "emu/only.png")
    with pytest.raises(UserError, match="class 'emu' has 1 pictures, too few"):
        made(data(folder), tmp_path / "out")


def test_digits_are_stratified_and_whole(tmp_path):
    card, splits = made(data(tmp_path, source="digits"), tmp_path / "out")
    assert sum(card["counts"].values()) == 1797 and not any(card["duplicates"].values())
    shares = [np.bincount(split.labels, minlength=10) / len(split) for split in splits.values()]
    assert np.abs(np.diff(shares, axis=0)).max() < 0.01
    assert splits["train"].pixels.max() == 255


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))))
def test_what_is_written_is_read(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("split") / "x.arrow"
    names = [f"n{i}" for i in range(len(pixels))]
    prepared.write_split(path, [prepared.pixel_table(pixels, np.arange(len(pixels)), names)])
    back = prepared.read_split(path)
    assert np.array_equal(back.pixels, pixels) and back.labels.tolist() == list(range(len(pixels))) and back.names == names
    assert back.stored_size == pixels.shape[1] and not back.pixels.flags.writeable and not back.pixels.flags.owndata


def test_mean_and_std_are_those_of_the_training_pixels(folder, tmp_path):
    card, splits = made(data(folder), tmp_path / "out")
    scaled = splits["train"].pixels / 255
    assert np.allclose(card["mean"], scaled.mean((0, 1, 2))) and np.allclose(card["std"], scaled.std((0, 1, 2)))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"ARROW1" + b[6:-6] + b"xxxxxx"])
def test_a_damaged_split_is_one_line(folder, tmp_path, damage):
    made(data(folder), tmp_path / "out")
    path = tmp_path / "out/test.arrow"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged .* `dvc repro prepare` makes it anew"):
        prepared.read_split(path)
    path.unlink()
    with pytest.raises(UserError, match="is missing; `dvc repro prepare` makes it"):
        prepared.read_split(path)


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"a": 1', "[" * 10**5])
def test_a_damaged_card_is_one_line(tmp_path, damage):
    with pytest.raises(UserError, match="card.json is missing; `dvc repro prepare` makes it"):
        prepared.read_card(tmp_path)
    (tmp_path / "card.json").write_text(damage)
    with pytest.raises(UserError, match="card.json is damaged; `dvc repro` makes it anew"):
        prepared.read_card(tmp_path)


# What is written


def test_pictures_without_a_size_are_kept_byte_for_byte(folder, tmp_path):
    (folder / "cat/photo.jpg").write_bytes(encoded(50, "JPEG", quality=83))
    card, splits = made(data(folder, image_size=None), tmp_path / "out")
    for split in splits.values():
        assert split.stored_size is None and split.image_shape is None
        for row in range(len(split)):
            assert split.encoded(row) == (folder / split.names[row]).read_bytes()
    assert card["image_shape"] is None and card["channels"] == 3
    again = made(data(folder, image_size=None), tmp_path / "again")[0]
    assert card == again and card["fingerprint"] != made(data(folder), tmp_path / "sized")[0]["fingerprint"]


def test_encoded_pictures_are_spread_over_batches_and_found_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "BYTES_PER_BATCH", 100)
    contents = [bytes([row]) * (1 + row % 60) for row in range(200)]
    names = [str(row) for row in range(200)]
    prepared.write_split(tmp_path / "x.arrow", prepared.encoded_tables(contents, np.arange(200), names))
    split = prepared.read_split(tmp_path / "x.arrow")
    assert split.table["image"].num_chunks > 20 and [split.encoded(row) for row in range(200)] == contents
    assert split.labels.tolist() == list(range(200)) and split.names == names


def test_pixels_without_a_size_become_png_files(tmp_path):
    settings = data(tmp_path, "digits", image_size=None)
    card, splits = made(settings, tmp_path / "out")
    sized = made(data(tmp_path, "digits"), tmp_path / "sized")[1]
    decoded = [decode.pixels(splits["test"].encoded(row), channels=card["channels"]) for row in range(10)]
    assert np.array_equal(np.stack(decoded), sized["test"].pixels[:10])


def test_the_card_tells_how_the_owner_has_the_pictures(folder, tmp_path):
    for index, quality in enumerate([60, 75, 90, 90, 90]):
        (folder / f"dog/{index}.jpg").write_bytes(encoded(60 + index, "JPEG", quality=quality, subsampling=[0, 2][index > 0]))
    picture(70, size=(40, 30)).save(folder / "cat/largest.png")
    picture(71, "L", size=(3, 2)).save(folder / "cat/smallest.png")
    card, _ = made(data(folder), tmp_path / "out")
    assert card["encodings"] == {
        "JPEG": {
            "pictures": 5,
            "modes": {"RGB": 5},
            "quality": {"least": 60, "median": 90, "most": 90},
            "subsampling": {"4:2:0": 4, "4:4:4": 1},
        },
        "PNG": {"pictures": 42, "modes": {"L": 1, "RGB": 41}},
    }
    assert card["source_sizes"] == {"smallest": [2, 3], "median": [9, 13], "largest": [30, 40]}
    assert card["channels"] == 3 and card["problems"] == []


def _noise(name: str, label: int) -> Picture:
    return Picture(name, label, partial(np.random.default_rng(list(name.encode())).bytes, 64), (8, 8, 1))


def test_the_card_tells_what_is_absent_or_unbalanced(tmp_path):
    counts = {"train": [12, 4], "test": [3, 0]}
    made_up = {
        split: iter([_noise(f"{split} {label} {i}", label) for label, count in enumerate(both) for i in range(count)])
        for split, both in counts.items()
    }
    card = prepare(Source(["cat", "dog"], made_up, grey=True), data(tmp_path), tmp_path / "out")
    assert card["problems"] == [
        "the test split has no picture of class dog",
        "classes are unbalanced: 9 training pictures of cat, 3 of dog; read the balanced accuracy too",
    ]


def test_an_interruption_leaves_what_was_there(folder, tmp_path):
    before, _ = made(data(folder), tmp_path / "out/prepared")

    def interrupted():
        yield from list(sources.read(data(folder)).splits["train"])[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Source(["cat", "dog"], {"train": interrupted()}), data(folder), tmp_path / "out/prepared")
    assert prepared.read_card(tmp_path / "out/prepared") == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prepared"]


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(folder, tmp_path):
    """A process that may write no file of more than 4,096 bytes."""
    code = f"""
import resource, sys
from pipeline.config import Data, UserError
from pipeline.data import sources
from pipeline.data.prepare import prepare
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
settings = Data(**{data(folder).model_dump()!r})
try:
    prepare(sources.read(settings), settings, Path({str(tmp_path / "out/prepared")!r}))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"no room to write {tmp_path}/out/prepared (File too large); free some, and run it again\n"
    assert list((tmp_path / "out").iterdir()) == []
