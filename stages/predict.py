"""Use a trained network, no stage: python -m stages.predict MODEL PICTURES...

MODEL is a model folder (models/unguided/vit/0); PICTURES are files, folders, patterns, or - for a list of files on
standard input. A table of the likeliest classes goes to standard output; files that cannot be read are named and skipped.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline import prediction
from pipeline.config import UserError
from pipeline.explain import saliency
from pipeline.prediction import Prediction, Predictor
from pipeline.training import engine
from pipeline.training.checkpoint import load_model
from stages import common


def main() -> None:
    args = _arguments()
    predictor = Predictor(load_model(args.model, made_by="report"), engine.device_of("auto"))
    paths = prediction.find(args.pictures, sys.stdin)
    skipped: list[Path] = []

    def unreadable(path: Path, problem: str) -> None:
        skipped.append(path)
        tqdm.write(f"skipped {path}: {problem}", file=sys.stderr)

    found = prediction.predict(
        predictor,
        tqdm(paths, desc="pictures", unit=" pictures", disable=None, leave=False, file=sys.stderr),
        top=min(args.top, len(predictor.classes)),
        batch_size=args.batch_size,
        on_unreadable=unreadable,
        on_batch=_overlays(predictor, args.saliency),
    )
    WRITERS[args.format](found, sys.stdout)
    if skipped:
        print(f"skipped {len(skipped)} of {len(paths)} pictures", file=sys.stderr)
    if len(skipped) == len(paths):
        raise UserError("no picture could be read")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--top", type=_positive, default=5, help="classes per picture (5)")
    parser.add_argument("--format", choices=WRITERS, default="csv")
    parser.add_argument("--batch-size", type=_positive, default=64)
    parser.add_argument("--saliency", type=Path, metavar="FOLDER", help="also write where the likeliest class hangs on, as PNG")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _write_csv(predictions: Iterable[Prediction], file: TextIO) -> None:
    """One row per picture and rank, so that any number of classes is one table."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["picture", "rank", "label", "probability"])
    for each in predictions:
        for rank, (label, probability) in enumerate(zip(each.labels, each.probabilities, strict=True), 1):
            writer.writerow([each.picture, rank, label, f"{probability:.6f}"])


def _write_json(predictions: Iterable[Prediction], file: TextIO) -> None:
    """A line per picture, so that a long list can be read while it grows."""
    for each in predictions:
        classes = [
            {"label": label, "probability": round(probability, 6)}
            for label, probability in zip(each.labels, each.probabilities, strict=True)
        ]
        file.write(json.dumps({"picture": each.picture, "classes": classes}, ensure_ascii=False) + "\n")


def _overlays(predictor: Predictor, folder: Path | None) -> Callable[[list[Path], np.ndarray], None]:
    """What writes folder/0001-NAME.png for every picture: the saliency of its likeliest class beside it."""
    written: list[Path] = []

    def write(paths: list[Path], pixels: np.ndarray) -> None:
        if folder is None:
            return
        from pipeline.report import figures

        folder.mkdir(parents=True, exist_ok=True)
        classes = torch.from_numpy(predictor.probabilities(pixels).argmax(1))
        images = predictor.inputs(pixels)
        heat = figures.heat(saliency.plain(predictor.network, images, classes.to(images.device)).cpu().numpy())
        for path, picture, colours in zip(paths, np.broadcast_to(pixels, heat.shape), heat, strict=True):
            written.append(path)
            both = Image.fromarray(np.concatenate([picture, colours], 1))
            both.save(folder / f"{len(written):04}-{path.stem}.png")

    return write


WRITERS: dict[str, Any] = {"csv": _write_csv, "json": _write_json}

if __name__ == "__main__":
    common.run(main)
