"""Sources in which the folder of a picture is its class."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.config import Data, UserError
from pipeline.data.sources.base import Picture, Source, at_least_two, listed
from pipeline.data.sources.tree import Tree, holding, open_tree

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}


def image_folder(data: Data) -> Source:
    """One sub-folder per class; or train/, [val/,] [test/] that each hold these."""
    tree = _inside(open_tree(Path(data.path)))
    named = {name.lower(): f"{name}/" for name in tree.folders()}
    found = {split: named[name] for split, names in SPLITS.items() for name in names if name in named}
    return _class_folders(tree, found if "train" in found else {"train": ""}, data)


def imagenet(data: Data) -> Source:
    """train/<wnid>/ and val/<wnid>/ (Russakovsky et al. 2015). val is the test split: its own test has no labels."""
    tree = _inside(open_tree(Path(data.path)))
    if missing := [name for name in ("train", "val") if name not in tree.folders()]:
        raise UserError(f"data.path '{data.path}' has no folder {missing[0]}/ of class folders, as imagenet has")
    return _class_folders(tree, {"train": "train/", "test": "val/"}, data)


def intel(data: Data) -> Source:
    """The Intel scenes: seg_train/[seg_train/]<class>/ and seg_test/[seg_test/]<class>/; seg_pred has no labels."""
    tree = _inside(open_tree(Path(data.path)))
    if missing := [name for name in ("seg_train", "seg_test") if name not in tree.folders()]:
        raise UserError(f"data.path '{data.path}' has no folder {missing[0]}/, as intel has")
    folders = {}
    for split, name in (("train", "seg_train"), ("test", "seg_test")):
        twice = tree.below(f"{name}/").folders() == [name]
        folders[split] = f"{name}/{name}/" if twice else f"{name}/"
    return _class_folders(tree, folders, data)


def tiny_imagenet(data: Data) -> Source:
    """The official layout: wnids.txt, train/<wnid>/images/, val/images/ + val/val_annotations.txt. val is the test split."""
    tree = holding(Path(data.path), "wnids.txt")
    classes = at_least_two(sorted(tree.text("wnids.txt").split()), where=f"{data.path}: wnids.txt")
    test = list(_annotations(tree, "val/val_annotations.txt", classes))
    return Source(classes, {"train": _pictures(tree, "train/", classes), "test": listed(tree, test)})


def _annotations(tree: Tree, file: str, classes: list[str]) -> Iterator[tuple[str, int]]:
    """Lines of a picture's name, its class and four numbers that are not needed here, with tabs between."""
    index = {wnid: label for label, wnid in enumerate(classes)}
    for line in tree.text(file).splitlines():
        name, wnid = (line.split("\t") + ["", ""])[:2]
        if wnid not in index:
            raise UserError(f"{tree.path}: {file} gives {name} the class '{wnid}', which wnids.txt does not name")
        yield f"val/images/{name}", index[wnid]


def _class_folders(tree: Tree, folders: dict[str, str], data: Data) -> Source:
    classes = sorted({name for folder in folders.values() for name in tree.below(folder).folders()})
    at_least_two(classes, where=f"data.path '{data.path}': as class folders it")
    return Source(classes, {split: _pictures(tree, folder, classes) for split, folder in folders.items()})


def _pictures(tree: Tree, folder: str, classes: list[str]) -> Iterator[Picture]:
    """The pictures below each class folder, other kinds of file left out."""
    index = {name: label for label, name in enumerate(classes)}
    for name in tree.names:
        rest = name[len(folder) :]
        if name.startswith(folder) and "/" in rest and PurePosixPath(name).suffix.lower() in EXTENSIONS and rest[-1] != "/":
            if (label := index.get(rest.split("/")[0])) is None:
                raise UserError(f"{tree.path}: {name} lies in the folder of an unknown class")
            yield Picture(name, label, partial(tree.read, name))


def _inside(tree: Tree) -> Tree:
    """An archive without the one folder that is often wrapped around everything; a folder as it is."""
    known = {name for names in SPLITS.values() for name in names}
    while not tree.path.is_dir() and len(tops := tree.folders()) == 1 and tops[0].lower() not in known:
        if not (inner := tree.below(f"{tops[0]}/")).folders():
            break
        tree = inner
    return tree
