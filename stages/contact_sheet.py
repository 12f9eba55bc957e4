"""What a recipe makes of the training pictures, as a picture: python -m stages.contact_sheet RECIPE [FILE]. No stage."""

import argparse
from pathlib import Path

import torch

from pipeline import config
from pipeline.data import loading, prepared
from pipeline.report import augmentation, figures
from stages import common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=["teacher", "student"], help="of params.yaml, under `training`")
    parser.add_argument("file", type=Path, nargs="?", default=Path("contact_sheet.png"), help="its ending names the format")
    args = parser.parse_args()

    experiment, recipe = config.load("experiment", f"training.{args.recipe}")
    card = prepared.read_card(common.PREPARED)
    pictures = loading.pictures(common.PREPARED / "train.arrow", channels=card["channels"])
    source = loading.open_source(pictures, torch.device("cpu"))
    sheet = augmentation.sheet(source, card, recipe, seed=experiment.seeds[0])
    figures.write(sheet, args.file)
    print(f"see {args.file}")


if __name__ == "__main__":
    common.run(main)
