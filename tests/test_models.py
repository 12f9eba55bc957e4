"""Shifts are shifts, masked tokens do not see themselves, sizes are the papers'."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import models
from pipeline.explain import cost
from pipeline.models.attention import Attention
from pipeline.models.resnet import CifarResNet
from pipeline.models.tokens import patches, shifted
from pipeline.models.vit import DropPath, VisionTransformer
from tests.conftest import CARD, RESNET, SL_VIT


@given(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9), st.integers(0, 3))
def test_a_shift_is_a_shift(channels, height, width, pixels):
    images = torch.randn(2, channels, height, width)
    copies = shifted(images, pixels).split(channels, dim=1)
    assert torch.equal(copies[0], images)
    for copy, (down, right) in zip(copies[1:], [(-1, -1), (-1, 1), (1, -1), (1, 1)], strict=True):
        expected = torch.zeros_like(images)
        for y in range(height):
            for x in range(width):
                row, column = y + down * pixels, x + right * pixels
                if 0 <= row < height and 0 <= column < width:
                    expected[:, :, y, x] = images[:, :, row, column]
        assert torch.equal(copy, expected)


def test_patches_are_cut_row_by_row_with_channels_innermost():
    images = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    cut = patches(images, 2)
    assert cut.shape == (1, 6, 8)
    assert cut[0, 1].tolist() == [images[0, c, y, x].item() for y in (0, 1) for x in (2, 3) for c in (0, 1)]


@pytest.mark.parametrize("local", [False, True])
def test_attention_rows_sum_to_one_and_local_ones_without_themselves(local):
    attention, tokens = Attention(24, 3, local=local), torch.randn(2, 7, 24)
    weights = attention.weights(tokens)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 7), atol=1e-6)
    assert (weights.diagonal(dim1=-2, dim2=-1) == 0).all() == local
    value = attention._heads(tokens)[2]
    expected = attention.projection((weights @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(tokens), expected, atol=1e-6)


def test_the_temperature_of_local_attention_is_learned_one_per_head():
    attention = Attention(24, 3, local=True)
    attention(torch.randn(2, 5, 24)).square().sum().backward()
    assert attention.scale.shape == (3,) and torch.allclose(attention.scale, torch.tensor(8**-0.5))
    assert (attention.scale.grad.abs() > 0).all()
    assert "scale" not in dict(Attention(24, 3).named_parameters())


@pytest.mark.parametrize(
    ("network", "shape", "parameters", "macs"),
    [
        (lambda: VisionTransformer(img_size=64, num_classes=200), (64, 64, 3), 2_756_744, 189_522_816),
        (lambda: VisionTransformer(img_size=64, num_classes=200, spt=True, lsa=True), (64, 64, 3), 2_906_228, 198_960_000),
        (lambda: VisionTransformer(img_size=32, patch_size=4, num_classes=100), (32, 32, 3), 2_709_796, None),
        (lambda: CifarResNet(depth=56, num_classes=100), (32, 32, 3), 861_620, 125_753_600),
    ],
)
def test_sizes_are_those_of_the_papers(network, shape, parameters, macs):
    built = network().eval()
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    assert macs is None or cost.macs(built, shape) == macs


@pytest.mark.parametrize("settings", [SL_VIT, SL_VIT.model_copy(update={"spt": False, "lsa": False}), RESNET])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (48, 3)])
def test_every_network_keeps_the_interface(settings, size, channels):
    arguments = models.arguments(settings, image_shape=[size, size, channels], classes=5)
    network = models.build(settings.model, arguments).eval()
    images = torch.randn(2, channels, size, size)
    features, maps = network.forward_intermediates(images, indices=network.default_layers)
    assert len(maps) == 3 and all(each.ndim == 4 and len(each) == 2 for each in maps)
    assert torch.equal(network.forward_head(features), network(images)) and network(images).shape == (2, 5)
    assert torch.equal(network.forward_features(images), features)
    assert network.head.in_features == network.num_features


def test_maps_are_the_tokens_in_their_places():
    network = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=4, depth=1, num_heads=1).eval()
    network.blocks[0] = torch.nn.Identity()
    network.pos_embed.data.zero_()
    images = torch.randn(1, 1, 8, 8)
    (maps,) = network.forward_intermediates(images, indices=[0])[1]
    assert torch.equal(maps[0, :, 1, 2], network.patch_embed(images)[0, 4 * 1 + 2])


def test_the_same_seed_gives_the_same_weights():
    def build(seed):
        torch.manual_seed(seed)
        return models.build("vit", models.arguments(SL_VIT, image_shape=CARD["image_shape"], classes=3)).state_dict()

    first, again, other = build(0), build(0), build(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_few_tokens_are_warned_of():
    with pytest.warns(UserWarning, match="patch_size 4 leaves 4 tokens of a picture of 8 px"):
        models.arguments(SL_VIT.model_copy(update={"patch_size": 4}), image_shape=[8, 8, 1], classes=2)


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation():
    drop, branch = DropPath(0.3), torch.ones(20000, 1, 1)
    assert abs(drop(branch).mean() - 1) < 0.03
    assert drop(branch).unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(drop.eval()(branch), branch)
