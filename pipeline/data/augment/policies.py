"""Which operations a picture goes through, with which arguments. Pure: numbers in, names and arguments out.

A policy gives layers, one after the other, each with the name of an operation and its argument for every picture.
Adding a policy is a function here and an entry in POLICIES.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from pipeline.config import Augmentation, RandAugment
from pipeline.data.augment.chances import Chances, normal

Layer = tuple[np.ndarray, np.ndarray]  # names (B,) of operations, arguments (B,)
Argument = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # of levels in [0, 1], signs and the picture's side in pixels


def layers(augmentation: Augmentation, chances: Chances, side: int) -> list[Layer]:
    """What the settings' policy draws for the views of `chances`, in the order of work."""
    return POLICIES[augmentation.policy](chances, side, augmentation.randaugment)


def _autoaugment(policy: str) -> Callable[[Chances, int, RandAugment], list[Layer]]:
    """AutoAugment (Cubuk et al. 2019): one of 25 pairs of operations, each with its probability and one of ten levels."""

    def draw(chances: Chances, side: int, _settings: RandAugment) -> list[Layer]:
        names, probabilities, levels = _pairs(policy)
        drawn = chances("policy", 5)
        pair = (drawn[:, 0] * len(names)).astype(int)
        return [
            _layer(
                np.where(drawn[:, 1 + turn] < probabilities[pair, turn], names[pair, turn], "identity"),
                levels[pair, turn],
                drawn[:, 3 + turn],
                side,
                AUTOAUGMENT,
            )
            for turn in range(2)
        ]

    return draw


@cache
def _pairs(policy: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The policy's table as torchvision, which takes seconds to import, carries it: names, probabilities, levels (25, 2)."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    entries = [entry for pair in AutoAugment(AutoAugmentPolicy(policy)).policies for entry in pair]
    names = [_snake_case(name) for name, _, _ in entries]
    levels = [(level or 0) / 9 for _, _, level in entries]
    return (
        np.array(names).reshape(-1, 2),
        np.array([p for _, p, _ in entries]).reshape(-1, 2),
        np.array(levels).reshape(-1, 2),
    )


def _snake_case(name: str) -> str:
    """ShearX -> shear_x, but AutoContrast -> autocontrast, as Pillow has it."""
    return f"{name[:-1]}_{name[-1]}".lower() if name[-1] in "XY" else name.lower()


def _randaugment(chances: Chances, side: int, settings: RandAugment) -> list[Layer]:
    """RandAugment (Cubuk et al. 2020) in timm's form: the level is noisy, and an operation may be left out.

    With the defaults this is timm's "rand-m9-mstd0.5-inc1".
    """
    names = np.array(list(RANDAUGMENT))
    drawn_layers = []
    for turn in range(settings.operations):
        drawn = chances(f"policy{turn}", 5)
        magnitude = settings.magnitude + settings.magnitude_std * normal(drawn[:, 2], drawn[:, 3])
        name = np.where(drawn[:, 1] < settings.probability, names[(drawn[:, 0] * len(names)).astype(int)], "identity")
        drawn_layers.append(_layer(name, magnitude.clip(0, 10) / 10, drawn[:, 4], side, RANDAUGMENT))
    return drawn_layers


def _trivialaugment(chances: Chances, side: int, _settings: RandAugment) -> list[Layer]:
    """TrivialAugment, wide (Müller & Hutter 2021): one operation, at one of 31 levels."""
    names = np.array(["identity", *TRIVIALAUGMENT])
    drawn = chances("policy", 3)
    name = names[(drawn[:, 0] * len(names)).astype(int)]
    return [_layer(name, np.floor(drawn[:, 1] * 31) / 30, drawn[:, 2], side, TRIVIALAUGMENT)]


def _layer(names: np.ndarray, levels: np.ndarray, chances: np.ndarray, side: int, meaning: dict[str, Argument]) -> Layer:
    """The arguments that the levels in [0, 1] mean to each operation; half of the signs are negative."""
    signs = np.where(chances < 0.5, -1.0, 1.0)
    arguments = np.zeros(len(names))
    for name in set(names.tolist()) - {"identity"}:
        rows = names == name
        arguments[rows] = meaning[name](levels[rows], signs[rows], side)
    return names, arguments


def _signed(most: float) -> Argument:
    return lambda level, sign, side: sign * level * most


def _factor(most: float) -> Argument:
    return lambda level, sign, side: 1 + sign * level * most


def _nothing(level: np.ndarray, sign: np.ndarray, side: int) -> np.ndarray:
    return np.zeros_like(level)


# What a level in [0, 1] means, per policy. Whole pixels, bits and thresholds are rounded as the reference rounds them.

AUTOAUGMENT: dict[str, Argument] = {  # torchvision.transforms.AutoAugment
    "shear_x": _signed(0.3),
    "shear_y": _signed(0.3),
    "translate_x": lambda level, sign, side: sign * np.floor(level * side * 150 / 331),
    "translate_y": lambda level, sign, side: sign * np.floor(level * side * 150 / 331),
    "rotate": _signed(30),
    "brightness": _factor(0.9),
    "color": _factor(0.9),
    "contrast": _factor(0.9),
    "sharpness": _factor(0.9),
    "posterize": lambda level, sign, side: 8 - np.round(4 * level),
    "solarize": lambda level, sign, side: 255 - 255 * level,
    "autocontrast": _nothing,
    "equalize": _nothing,
    "invert": _nothing,
}
TRIVIALAUGMENT: dict[str, Argument] = {  # torchvision.transforms.TrivialAugmentWide
    "shear_x": _signed(0.99),
    "shear_y": _signed(0.99),
    "translate_x": lambda level, sign, side: sign * np.floor(32 * level),
    "translate_y": lambda level, sign, side: sign * np.floor(32 * level),
    "rotate": _signed(135),
    "brightness": _factor(0.99),
    "color": _factor(0.99),
    "contrast": _factor(0.99),
    "sharpness": _factor(0.99),
    "posterize": lambda level, sign, side: 8 - np.round(6 * level),
    "solarize": lambda level, sign, side: 255 - 255 * level,
    "autocontrast": _nothing,
    "equalize": _nothing,
}
RANDAUGMENT: dict[str, Argument] = {  # timm's increasing set; what would keep no bit keeps one, which Pillow 13 demands
    "autocontrast": _nothing,
    "equalize": _nothing,
    "invert": _nothing,
    "rotate": _signed(30),
    "posterize": lambda level, sign, side: np.maximum(4 - np.floor(4 * level), 1),
    "solarize": lambda level, sign, side: 256 - np.floor(256 * level),
    "solarize_add": lambda level, sign, side: np.floor(110 * level),
    "color": lambda level, sign, side: np.maximum(1 + sign * level * 0.9, 0.1),
    "contrast": lambda level, sign, side: np.maximum(1 + sign * level * 0.9, 0.1),
    "brightness": lambda level, sign, side: np.maximum(1 + sign * level * 0.9, 0.1),
    "sharpness": lambda level, sign, side: np.maximum(1 + sign * level * 0.9, 0.1),
    "shear_x": _signed(0.3),
    "shear_y": _signed(0.3),
    "translate_x": lambda level, sign, side: sign * level * 0.45 * side,
    "translate_y": lambda level, sign, side: sign * level * 0.45 * side,
}
POLICIES: dict[str, Callable[[Chances, int, RandAugment], list[Layer]]] = {
    "none": lambda chances, side, settings: [],
    "autoaugment_cifar10": _autoaugment("cifar10"),
    "autoaugment_svhn": _autoaugment("svhn"),
    "autoaugment_imagenet": _autoaugment("imagenet"),
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
}
