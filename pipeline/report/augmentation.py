"""What a recipe makes of the training pictures, to be looked at."""

from typing import Any

from torch import Tensor

from pipeline.config import Training
from pipeline.data import batches
from pipeline.data.augment import mixing
from pipeline.data.augment.colours import Colours
from pipeline.data.augment.geometry import Frame
from pipeline.data.loading import Source, Take
from pipeline.report import figures

PICTURES, EPOCHS = 6, 9  # rows and columns beside the pictures as they are


def sheet(source: Source, card: dict[str, Any], recipe: Training, *, seed: int) -> figures.Figure:
    """The first pictures of the first epoch as they are and as the first epochs show them.

    Where the recipe mixes pictures, a row is mixed with its neighbour, and the shares of the labels are told.
    """
    classes, colours = card["classes"], Colours.of(card["mean"], card["std"])
    side, pictures = batches.image_shape(card, recipe)[0], len(source.labels)
    rows = batches.order(pictures, seed=seed, epoch=0)[: min(PICTURES, pictures // 2 * 2)]
    (whole,) = source.fetch([Take(rows)], Frame(side))
    columns, captions = {"as it is": whole.permute(0, 2, 3, 1).numpy()}, {}
    for epoch in range(EPOCHS):
        where = {"seed": seed, "epoch": epoch}
        (images,) = batches.augmented(source, [rows], recipe.augmentation, colours, side=side, **where)
        if recipe.augmentation.mixes:
            how = mixing.draw(recipe.augmentation, height=side, width=side, step=0, **where)
            images, labels = mixing.mix(images, source.labels[rows], how, len(classes))
            captions[f"epoch {epoch + 1}"] = [_shares(label, classes) for label in labels]
        columns[f"epoch {epoch + 1}"] = images.permute(0, 2, 3, 1).numpy()
    return figures.contact_sheet(columns, [classes[label] for label in source.labels[rows].tolist()], captions)


def _shares(target: Tensor, classes: list[str]) -> str:
    """ "0.70 cat" and "0.30 dog" of a mixed label, nothing of a pure one."""
    shares = [(share, classes[label]) for label, share in enumerate(target.tolist()) if share]
    return "\n".join(f"{share:.2f} {name[:14]}" for share, name in sorted(shares, reverse=True)) if len(shares) > 1 else ""
