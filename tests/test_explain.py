"""Explanations leave the network alone, and each is what its paper defines."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from pipeline import models, networks, similarity
from pipeline.explain import attention, corruption, cost, insight, saliency
from pipeline.models.attention import Attention, Locality
from tests.conftest import RESNET, SL_VIT, job
from tests.test_models import NETWORKS, TINY

FEW = [name for name in NETWORKS if name not in ("resnet", "efficientnet", "pvt_v2")]  # large, and alike to others


def built(name: str) -> nn.Module:
    """A network of test_models for five classes and pictures of 32 px."""
    network = TypeAdapter(networks.Network).validate_python(NETWORKS[name])
    arguments = models.arguments(network, image_shape=(32, 32, 3), classes=5) | TINY.get(name, {})
    torch.manual_seed(0)
    return models.build(network.model, arguments).eval()


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("name", FEW)
def test_explaining_changes_nothing(name):
    network, images = built(name), torch.randn(8, 3, 32, 32)
    before, hooked = network(images), hooks(network)
    found = insight.of(network, images, torch.arange(8) % 5, patch=4)
    assert torch.equal(network(images), before) and hooks(network) == hooked
    assert all(parameter.grad is None for parameter in network.parameters())
    assert found["saliency"].shape == (6, 32, 32) and found["gram"].shape[1:] == (8, 8)
    assert ("divergence" in found) == ("resnet" not in name)


@pytest.mark.parametrize("name", [name for name in FEW if "resnet" not in name])
def test_rows_of_attention_sum_to_one(name):
    for weights in attention.layers(built(name), torch.randn(2, 3, 32, 32)):
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert -1e-5 <= attention.divergence(weights) <= math.log(weights.shape[-1]) + 1e-5


@pytest.mark.parametrize("lsa", [False, True, "mask", "temperature"])
def test_what_is_recorded_is_the_plain_formula(lsa):
    torch.manual_seed(0)
    layer, tokens = Attention(24, 3, locality=Locality.of(lsa, 0.7)), torch.randn(2, 10, 24)
    (recorded,) = attention.layers(layer, tokens)
    torch.testing.assert_close(recorded, layer.weights(tokens).detach())


def test_the_class_token_of_each_kind_of_network():
    for name, shape in {
        "vit": (3, 8, 8),
        "three_tokens": (3, 8, 8),
        "cait": (3, 8, 8),
        "pit": (2, 4, 4),
        "cct": (3, 16, 16),
    }.items():
        weights = attention.layers(built(name), torch.randn(2, 3, 32, 32))[-1]
        found = attention.of_class_token(weights, shape[1:], pictures=2)
        assert found.shape == (2, *shape) and bool((found.sum((2, 3)) <= 1 + 1e-5).all())
    windows = attention.layers(built("swin"), torch.randn(2, 3, 32, 32))[0]
    assert attention.of_class_token(windows, (16, 16), pictures=2) is None


def uniform(tokens: int) -> torch.Tensor:
    return torch.full((2, 3, tokens, tokens), 1 / tokens)


def test_attention_to_all_alike_and_to_oneself_alone():
    alone = torch.eye(17).expand(2, 3, 17, 17)
    assert attention.divergence(uniform(17)) == pytest.approx(0, abs=1e-5)
    assert attention.divergence(alone) == pytest.approx(math.log(17))
    assert attention.distance(alone[..., 1:, 1:], [(4, 4)], height=32) == 0
    assert attention.distance(uniform(4), [(2, 2)], height=8) == pytest.approx((0 + 4 + 4 + 4 * math.sqrt(2)) / 4)
    assert math.isnan(attention.distance(uniform(40), [(2, 2), (4, 4)], height=8))


def test_rollout_goes_around_the_layers_too():
    """Through one layer, half of what a token shows is its own; layers that look at nothing else add nothing."""
    looks, alone = torch.softmax(torch.randn(2, 3, 17, 17), -1), torch.eye(17).expand(2, 3, 17, 17)
    once = attention.rollout([looks], (4, 4), pictures=2)
    torch.testing.assert_close(once.flatten(1), looks.mean(1)[:, 0, 1:] / 2)
    torch.testing.assert_close(attention.rollout([alone, looks, alone], (4, 4), pictures=2), once)
    assert attention.rollout([looks, uniform(5)], (4, 4), pictures=2) is None


class Weighted(nn.Module):
    """Scores that are linear in the pixels, after maps of two channels."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 4, bias=False)

    def forward_features(self, images):
        return self.maps(images)

    def forward_head(self, features):
        return self.head(features.mean((2, 3)))

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def test_saliency_of_a_linear_network_is_its_weights():
    network, images, classes = Weighted(), torch.randn(5, 3, 6, 6), torch.tensor([0, 1, 2, 3, 0])
    by_channel = network.head.weight[classes] @ network.maps.weight[:, :, 0, 0] / 36
    expected = by_channel.abs().amax(1)[:, None, None].expand(5, 6, 6).detach()
    torch.testing.assert_close(saliency.plain(network, images, classes), expected)
    torch.testing.assert_close(saliency.smooth(network, images, classes), expected)


def test_grad_cam_weighs_the_maps_that_the_head_sees():
    network, images, classes = Weighted(), torch.randn(5, 3, 6, 6), torch.tensor([0, 1, 2, 3, 0])
    maps = torch.einsum("bc,bchw->bhw", network.head.weight[classes] / 36, network.maps(images)).relu()
    torch.testing.assert_close(saliency.grad_cam(network, images, classes), maps)
    assert saliency.grad_cam(built("vit"), torch.randn(2, 3, 32, 32), torch.tensor([0, 1])) is None


@given(seed=st.integers(0, 999), patch=st.sampled_from([2, 4, 8]))
def test_blockness_is_one_for_squares_and_none_for_noise(seed, patch):
    noise = torch.rand(64, 32, 32, generator=torch.Generator().manual_seed(seed))
    squares = noise[:, ::patch, ::patch].repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    on, moved = saliency.blockness(squares, patch)
    assert on == pytest.approx(1) and moved < 0.5
    assert all(abs(share) < 0.02 for share in saliency.blockness(noise, patch))
    assert saliency.blockness(3 * squares, patch) == pytest.approx((on, moved), abs=1e-6)


@given(seed=st.integers(0, 999))
def test_cka_knows_no_rotation_and_no_scale(seed):
    rng = np.random.default_rng(seed)
    features, other = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    turned = 3 * features @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    grams = [similarity.gram(each) for each in (features, turned, other)]
    assert similarity.cka(grams[0], grams[1]) == pytest.approx(1, abs=1e-4)
    assert similarity.cka(grams[0], grams[2]) == pytest.approx(similarity.cka(grams[2], grams[0]))
    assert abs(similarity.cka(grams[0], grams[2])) < 0.3


def test_cka_of_unrelated_features_is_about_nothing_however_many_they_are():
    rng = np.random.default_rng(0)
    grams = [similarity.gram(rng.normal(size=(40, 4000))) for _ in range(30)]
    pairs = [similarity.cka(first, second) for first, second in zip(grams, grams[1:], strict=False)]
    assert abs(np.mean(pairs)) < 0.02


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), count=st.integers(1, 70))
def test_pictures_are_drawn_in_turns_of_classes(labels, count):
    rows = insight.choose(np.array(labels), count)
    assert len(rows) == len(set(rows.tolist())) == min(count, len(labels))
    first = [labels[row] for row in rows[: len(set(labels))]]
    assert len(set(first)) == len(first), "no class comes again before each has come"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", corruption.CORRUPTIONS)
def test_a_picture_gets_worse_with_strength(kind, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, channels)).astype(np.uint8)
    worse = [corruption.corrupt(pixels, kind, strength) for strength in corruption.STRENGTHS]
    errors = [np.abs(each.astype(float) - pixels).mean() for each in worse]
    assert errors == sorted(errors) and errors[0] > 0
    assert all(each.shape == pixels.shape and each.dtype == np.uint8 for each in worse)
    assert np.array_equal(worse[2], corruption.corrupt(pixels, kind, 3))


def test_a_fresh_temperature_is_the_plain_one():
    for settings, layers in ((SL_VIT, 3), (RESNET, 0)):
        made = job(settings)
        found = insight.temperatures(models.build(settings.model, made.config["model_args"]))
        assert len(found) == layers and np.allclose(found, 1)


def test_activations_by_hand():
    """Flattened pixels are kept for the first linear map, and what the ReLU lets through, once, for itself and the second."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    assert cost.activation_bytes(network, (2, 2, 3)) == 4 * (12 + 20)


@pytest.mark.parametrize("name", ["sl_vit", "cait", "swin", "resnet_cifar"])
def test_activations_grow_with_the_pictures_alone(name):
    network = built(name)
    each = cost.activation_bytes(network, (32, 32, 3))
    assert cost._kept_bytes(network, 9, (32, 32, 3)) == cost._kept_bytes(network, 2, (32, 32, 3)) + 7 * each > 0


@pytest.mark.gpu
def test_peak_memory_holds_the_weights_and_is_of_this_network_alone():
    network = built("sl_vit").cuda()
    first = cost.of(network, (32, 32, 3))["inference_peak_bytes"]
    others = torch.zeros(10**7, device="cuda")
    assert first == cost.peak_bytes(network, (32, 32, 3)) > 4 * cost.of(network, (32, 32, 3))["parameters"]
    assert len(others)
