"""Augmentation against Pillow, timm and torchvision, operation by operation and in distribution."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from timm.data import auto_augment, mixup
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, TrivialAugmentWide

from pipeline.config import Augmentation, RandAugment
from pipeline.data.augment import Colours, augment, mixing, operations, policies
from pipeline.data.augment.chances import Chances, normal, uniform
from pipeline.data.augment.erasing import DRAWS, erase
from pipeline.data.augment.geometry import RECTANGLE_DRAWS, crop, crop_boxes, flip, resized

FILL = (124, 116, 104)
COLOURS = Colours.of([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
EXACT = [*operations.TABLES, *operations.BLENDS]
TIMM = {  # our operation -> timm's
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "invert": "Invert",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}
ARGUMENTS = {
    **dict.fromkeys(("shear_x", "shear_y"), st.floats(-0.99, 0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), st.integers(-400, 400).map(lambda tenths: tenths / 10 + 0.03)),
    "rotate": st.floats(-135, 135),
    **dict.fromkeys(operations.BLENDS, st.floats(0.01, 1.99)),
    "posterize": st.integers(1, 8),
    "solarize": st.integers(0, 256),
    "solarize_add": st.integers(0, 110),
    **dict.fromkeys(("invert", "autocontrast", "equalize"), st.just(0)),
}
VIEWS = np.arange(40000)
CHANCES = Chances(VIEWS, seed=1, epoch=2)


def scenes(count: int = 6, height: int = 19, width: int = 24, channels: int = 3) -> torch.Tensor:
    """Smooth pictures with some noise, of little and much contrast."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 5
    slopes = rng.uniform(-1, 1, (2, count, 1, 1, channels))
    waves = np.sin(slopes[0] * x[..., None] + slopes[1] * y[..., None])
    amplitudes = np.linspace(10, 120, count)[:, None, None, None]
    return torch.from_numpy((128 + amplitudes * waves + rng.normal(0, 4, waves.shape)).clip(0, 255).astype(np.uint8))


SCENES = scenes()


def applied(name: str, arguments: list[float], images: torch.Tensor) -> np.ndarray:
    names = np.full(len(images), name)
    fill = torch.tensor(FILL[: images.shape[3]], dtype=torch.float32)
    return stored(operations.apply(planes(images), names, np.array(arguments), fill)).numpy()


def planes(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def stored(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1)


def timms(name: str, argument: float, image: np.ndarray) -> np.ndarray:
    operation = auto_augment.NAME_TO_OP[TIMM[name]]
    level = [] if name in ("invert", "autocontrast", "equalize") else [argument]
    return np.asarray(operation(Image.fromarray(image), *level, fillcolor=FILL, resample=Image.Resampling.BILINEAR))


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data())
def test_a_colour_operation_is_pillows_to_the_bit(name, data):
    arguments = data.draw(st.lists(ARGUMENTS[name], min_size=6, max_size=6))
    for ours, image, argument in zip(applied(name, arguments, SCENES), SCENES.numpy(), arguments, strict=True):
        given_to_timm = argument if name in operations.BLENDS else int(argument)
        np.testing.assert_array_equal(ours, timms(name, given_to_timm, image))


@pytest.mark.parametrize("name", operations.TABLES)
@given(image=arrays(np.uint8, (5, 4, 3), elements=st.integers(0, 255)))
def test_a_table_is_pillows_for_any_picture(name, image):
    argument = {"posterize": 3, "solarize": 100, "solarize_add": 60}.get(name, 0)
    np.testing.assert_array_equal(applied(name, [argument], torch.from_numpy(image)[None])[0], timms(name, argument, image))


@pytest.mark.parametrize("name", operations.AFFINE)
@given(data=st.data())
def test_a_movement_is_pillows_within_two_of_255(name, data):
    """Pillow cuts decimals off where we round; a pixel whose source is on the very border may fall in or out."""
    arguments = data.draw(st.lists(ARGUMENTS[name], min_size=6, max_size=6))
    for ours, image, argument in zip(applied(name, arguments, SCENES), SCENES.numpy(), arguments, strict=True):
        difference = np.abs(ours.astype(int) - timms(name, argument, image))
        assert (difference.max(2) > 2).mean() < 0.01


@given(st.integers(-30, 30), st.integers(-30, 30))
def test_whole_pixels_are_moved_without_loss(x, y):
    moved = applied("translate_y", [y] * 6, torch.from_numpy(applied("translate_x", [x] * 6, SCENES)))
    padded = np.pad(SCENES.numpy(), ((0, 0), (40, 40), (40, 40), (0, 0)), constant_values=255)
    expected = padded[:, 40 + y : 40 + y + 19, 40 + x : 40 + x + 24]
    inside = np.pad(np.ones((19, 24), bool), 40)[40 + y : 40 + y + 19, 40 + x : 40 + x + 24]
    np.testing.assert_array_equal(moved[:, inside], expected[:, inside])
    assert (moved[:, ~inside] == FILL).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", policies.POLICIES)
def test_a_picture_fares_the_same_in_any_batch(policy, channels):
    images = planes(scenes(40, 16, 16, channels))
    settings = Augmentation(crop_padding=2, horizontal_flip=True, policy=policy, erase_probability=0.5, erase_mode="pixel")
    colours = Colours.of([0.5] * channels, [0.2] * channels)
    whole = augment(images, settings, Chances(np.arange(40), 3, 4), colours)
    assert whole.shape == images.shape and whole.dtype == torch.uint8
    for rows in (np.array([7]), np.arange(39, 20, -2)):
        part = augment(images[rows], settings, Chances(rows, 3, 4), colours)
        assert torch.equal(part, whole[rows])


def test_nothing_is_switched_on_by_default():
    assert torch.equal(augment(planes(SCENES), Augmentation(), Chances(np.arange(6), 0, 0), COLOURS), planes(SCENES))


def frequencies(names: np.ndarray) -> dict[str, float]:
    found, counts = np.unique(names, return_counts=True)
    return dict(zip(found.tolist(), (counts / len(names)).tolist(), strict=True))


def test_randaugment_draws_the_operations_and_arguments_of_timm(monkeypatch):
    """Against what timm's own operations are called with, 4,000 times."""
    calls: list[tuple[str, float]] = []
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        record = lambda image, *level, name=name, **_: calls.append((name, level[0] if level else 0.0)) or image  # noqa: E731
        monkeypatch.setitem(auto_augment.NAME_TO_OP, name, record)
    random.seed(0), np.random.seed(0)
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    for _ in range(4000):
        theirs(Image.new("RGB", (32, 32)))
    layers = policies.layers(Augmentation(policy="randaugment"), CHANCES, 32)
    assert len(layers) == 2
    names, arguments = (np.concatenate(parts) for parts in zip(*layers, strict=True))
    assert frequencies(names)["identity"] == pytest.approx(0.5, abs=0.01)
    for ours, name in TIMM_INCREASING.items():
        neutral = 1 if ours in operations.BLENDS else 0
        mine = arguments[names == ours] - neutral
        drawn = np.array([argument for called, argument in calls if called == name]) - neutral
        if ours == "posterize":
            drawn = np.maximum(drawn, 1)  # Pillow 13 refuses what timm draws now and then
        if "translate" in ours:
            drawn *= 32
        assert len(mine) / len(names) == pytest.approx(0.5 / 15, abs=0.003)
        assert len(drawn) / 8000 == pytest.approx(0.5 / 15, abs=0.01)
        expected = np.quantile(np.abs(drawn), [0.1, 0.5, 0.9])
        assert np.quantile(np.abs(mine), [0.1, 0.5, 0.9]) == pytest.approx(expected, rel=0.05)
        assert (mine < 0).mean() == pytest.approx((drawn < 0).mean(), abs=0.13)


TIMM_INCREASING = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.mark.parametrize("policy", ["cifar10", "svhn", "imagenet"])
def test_autoaugment_draws_the_pairs_of_torchvision(policy):
    reference = AutoAugment(AutoAugmentPolicy(policy))
    space = reference._augmentation_space(10, (32, 32))
    layers = policies.layers(Augmentation(policy=f"autoaugment_{policy}"), CHANCES, 32)
    for turn, (names, arguments) in enumerate(layers):
        expected: dict[tuple[str, float], float] = {}
        for name, probability, level in (pair[turn] for pair in reference.policies):
            magnitude = _magnitude(name, space[name][0], level)
            key = (policies._snake_case(name), round(magnitude, 3))
            expected[key] = expected.get(key, 0) + probability / 25
        drawn = zip(names.tolist(), np.round(_unsigned(names, arguments), 3).tolist(), strict=True)
        found = {key: count / len(names) for key, count in _counted(drawn).items() if key[0] != "identity"}
        assert found.keys() == {key for key, probability in expected.items() if probability}
        assert all(share == pytest.approx(expected[key], abs=0.006) for key, share in found.items())


def _counted(items):
    counts: dict = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


def _unsigned(names: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """What torchvision calls the magnitude: the distance from doing nothing."""
    return np.where(np.isin(names, list(operations.BLENDS)), np.abs(arguments - 1), np.abs(arguments))


def _magnitude(name: str, magnitudes: torch.Tensor, level: int | None) -> float:
    magnitude = round(float(magnitudes[level]), 4) if level is not None else 0.0  # 32-bit numbers miss whole ones
    return float(int(magnitude)) if "Translate" in name or name == "Posterize" else magnitude


def test_trivialaugment_draws_the_operations_and_levels_of_torchvision():
    space = TrivialAugmentWide()._augmentation_space(31)
    ((names, arguments),) = policies.layers(Augmentation(policy="trivialaugment"), CHANCES, 32)
    assert {policies._snake_case(name) for name in space} == set(names)
    for name, (magnitudes, signed) in space.items():
        mine = arguments[names == policies._snake_case(name)]
        assert len(mine) / len(names) == pytest.approx(1 / 14, abs=0.005)
        if magnitudes.ndim:
            levels = {round(_magnitude(name, magnitudes, level), 3) for level in range(31)}
            assert set(np.round(_unsigned(np.full(len(mine), policies._snake_case(name)), mine), 3).tolist()) == levels
            middle = 1 if policies._snake_case(name) in operations.BLENDS else 0
            assert (mine < middle).mean() == pytest.approx(0.48 if signed else 0.0, abs=0.03)


def test_random_numbers_are_uniform_and_differ_by_operation_picture_and_draw():
    numbers = uniform(np.arange(20000), 4, seed=3, epoch=5, operation="crop")
    assert numbers.shape == (20000, 4) and numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / numbers.size - 0.05).max() < 0.003
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
    other = uniform(np.arange(20000), 4, seed=3, epoch=5, operation="flip")
    assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.03


def test_normal_numbers_are_normal():
    numbers = normal(*CHANCES("normal", 2).T)
    assert np.isfinite(numbers).all() and abs(numbers.mean()) < 0.02 and abs(numbers.std() - 1) < 0.02
    assert (np.abs(numbers) > 1.96).mean() == pytest.approx(0.05, abs=0.005)


@given(st.integers(0, 3), st.integers(0, 2**31))
def test_a_crop_is_a_window_of_the_padded_picture(padding, seed):
    images = scenes(6, 8, 8)
    padded = np.pad(images.numpy(), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    cropped = crop(planes(images), Chances(np.arange(6), seed, 0)("crop", 2), padding)
    for before, after in zip(padded, stored(cropped).numpy(), strict=True):
        windows = [before[y : y + 8, x : x + 8] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
        assert any(np.array_equal(window, after) for window in windows)


def test_a_flip_mirrors_or_leaves():
    flipped = stored(flip(planes(SCENES[:2]), np.array([[0.1], [0.9]])))
    assert torch.equal(flipped[0], SCENES[0].flip(1)) and torch.equal(flipped[1], SCENES[1])


@given(st.integers(4, 40), st.integers(4, 40), st.floats(0.01, 1), st.integers(0, 2**31))
def test_a_resized_crop_lies_in_the_picture_and_has_its_shape(height, width, least, seed):
    sides = np.full(50, height), np.full(50, width)
    boxes = crop_boxes(Chances(np.arange(50), seed, 0)("resize", RECTANGLE_DRAWS), *sides, least)
    top, left, tall, wide = boxes.T
    assert (boxes >= 0).all() and (tall >= 1).all() and (wide >= 1).all()
    assert (top + tall <= height).all() and (left + wide <= width).all()
    assert (tall <= (wide + 1) * 4 / 3 + 1).all() and (wide <= (tall + 1) * 4 / 3 + 1).all()  # but for rounding


def test_areas_of_resized_crops_are_those_of_torchvision():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = crop_boxes(CHANCES("resize", RECTANGLE_DRAWS), np.full(40000, 32), np.full(40000, 32), 0.08)
    for values in (lambda boxes: boxes[:, 2] * boxes[:, 3], lambda boxes: boxes[:, 3] / boxes[:, 2], lambda boxes: boxes[:, 0]):
        expected = np.quantile(values(theirs), [0.1, 0.3, 0.5, 0.7, 0.9])
        assert np.quantile(values(ours), [0.1, 0.3, 0.5, 0.7, 0.9]) == pytest.approx(expected, rel=0.08, abs=1)


@given(st.integers(0, 18), st.integers(0, 23), st.integers(1, 40), st.data())
def test_resizing_is_pillows_within_two_of_255(top, left, side, data):
    tall, wide = data.draw(st.integers(1, 19 - top)), data.draw(st.integers(1, 24 - left))
    ours = stored(resized(planes(SCENES), np.array([[top, left, tall, wide]] * 6), side))
    for mine, image in zip(ours.numpy(), SCENES.numpy(), strict=True):
        part = Image.fromarray(image).crop((left, top, left + wide, top + tall))
        theirs = np.asarray(part.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(theirs - mine).max() <= 2


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_takes_the_share_of_pictures_and_of_area_that_it_should(mode):
    images = torch.full((4000, 3, 32, 32), 255, dtype=torch.uint8)
    chances = Chances(np.arange(4000), 0, 0)("erase", DRAWS)
    erased = erase(images, chances, 0.25, mode, COLOURS)
    changed = (erased != images).any(1).float().mean((1, 2))
    assert (changed > 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert changed[changed > 0].mean() == pytest.approx(_timms_erased_area(), abs=0.01)
    assert torch.equal(erase(images, chances, 0.0, mode, COLOURS), images)


def _timms_erased_area() -> float:
    from timm.data.random_erasing import RandomErasing

    random.seed(0)
    theirs = RandomErasing(probability=1.0, device="cpu")(torch.ones(1000, 1, 32, 32))
    return float((theirs == 0).float().mean())


def test_what_is_erased_has_the_mean_or_normal_colours():
    images = torch.zeros(2000, 3, 16, 16, dtype=torch.uint8)
    chances = Chances(np.arange(2000), 0, 0)("erase", DRAWS)
    const = stored(erase(images, chances, 1.0, "const", COLOURS))
    assert set(map(tuple, const.flatten(0, 2).unique(dim=0).tolist())) == {(0, 0, 0), FILL}
    pixel = stored(erase(images, chances, 1.0, "pixel", COLOURS)).flatten(0, 2).float()
    inside = pixel[(pixel > 0).all(1)]
    assert inside.mean(0) == pytest.approx(COLOURS.mean.numpy(), rel=0.05)  # black and white cut the tails
    assert inside.std(0) == pytest.approx(COLOURS.std.numpy(), rel=0.15)
    rand = stored(erase(images, chances, 1.0, "rand", COLOURS))
    assert all(len(picture.flatten(0, 1).unique(dim=0)) <= 2 for picture in rand[:50])


MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, mix_probability=0.8, switch_probability=0.5)


def test_mixtures_are_drawn_like_timms():
    np.random.seed(0)
    reference = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, switch_prob=0.5, num_classes=3)
    theirs = []
    for _ in range(4000):
        kept, cut = reference._params_per_batch()
        theirs.append(mixup.cutmix_bbox_and_lam((3, 32, 32), kept)[1] if cut else kept)
    ours = [mixing.draw(MIXED, height=32, width=32, seed=0, epoch=1, step=step) for step in range(4000)]
    assert np.mean([how.box is not None for how in ours]) == pytest.approx(0.4, abs=0.03)
    quantiles = np.linspace(0.05, 0.95, 10)
    assert np.quantile([how.kept for how in ours], quantiles) == pytest.approx(np.quantile(theirs, quantiles), abs=0.04)


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha", "cut"), [(1.0, 0.0, 0), (0.0, 1.0, 1)])
def test_one_alpha_alone_is_always_used(mixup_alpha, cutmix_alpha, cut):
    settings = Augmentation(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, switch_probability=0.5)
    drawn = [mixing.draw(settings, height=8, width=8, seed=0, epoch=0, step=step) for step in range(50)]
    assert np.mean([how.box is not None for how in drawn]) == cut


@given(st.integers(0, 10**6), st.integers(0, 100))
def test_labels_are_mixed_as_the_pixels_are(seed, step):
    how = mixing.draw(MIXED, height=16, width=16, seed=seed, epoch=0, step=step)
    images = torch.tensor([0, 200, 0, 200], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 16, 16)
    labels = torch.tensor([0, 1, 0, 1])
    mixed, targets = mixing.mix(images, labels, how, classes=3)
    assert targets.sum(1) == pytest.approx(1) and (targets[:, 2] == 0).all()
    assert mixed.float().mean((1, 2, 3)).numpy() == pytest.approx(200 * targets[:, 1].numpy(), abs=0.51)


def test_the_defaults_of_randaugment_are_those_of_the_string():
    assert RandAugment().model_dump() == {"magnitude": 9.0, "magnitude_std": 0.5, "operations": 2, "probability": 0.5}
