"""What one network lets us see of itself, as arrays for a small file, from which the report draws networks side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import similarity
from pipeline.explain import attention, saliency
from pipeline.models.attention import Tempered

SAMPLE = 128  # pictures that the numbers are taken over
SHOWN = 6  # of them that are drawn
BATCH = 32


def choose(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Rows of pictures, the same for every network: drawn by the seed, the classes taking turns."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), int)
    for label in np.unique(labels):
        turn[labels[order] == label] = np.arange((labels == label).sum())
    return order[np.argsort(turn, kind="stable")][:count]


def of(network: Any, images: Tensor, labels: Tensor, *, patch: int) -> dict[str, np.ndarray]:
    """Of pictures (N, C, H, W) as the network sees them, the first SHOWN for drawing, and their classes (N,).

    saliency, smooth, grad_cam: (S, H, W); attention: (S, heads, h, w) of the class token in the last layer; rollout:
    (S, h, w). By layer: divergence, distance (A,), temperature (T, 3) as mean, least and most over heads, gram (L, N, N).
    blockness: (2,), on the network's own grid of patches and on that moved by half a patch; `patch` for a CNN.
    What a network does not have is not there.
    """
    network.eval()
    maps = _maps(network, images)
    weights = attention.layers(network, images[:BATCH])
    grids = [(each.shape[2], each.shape[3]) for each in maps]
    side = images.shape[2] // grids[0][0] if weights else patch
    found: dict[str, np.ndarray | None] = {
        **_saliency(network, images[:SHOWN], labels[:SHOWN]),
        **_attention(weights, grids, height=images.shape[2]),
        "blockness": _blockness(network, images, labels, side),
        "temperature": temperatures(network),
        "gram": np.stack([similarity.gram_of_maps(each) for each in maps]),
    }
    return {name: array for name, array in found.items() if array is not None and array.size}


def temperatures(network: Any) -> np.ndarray:
    """(layers, 3): mean, least and most over heads, in units of sqrt(head width); nothing for a network of timm's."""
    tempered = [module for module in network.modules() if isinstance(module, Tempered)]
    by_head = [each.first_scale * each.locality.temperature / each.scale.detach().cpu() for each in tempered]
    return np.array([[float(heads.mean()), float(heads.min()), float(heads.max())] for heads in by_head])


def _maps(network: Any, images: Tensor) -> list[Tensor]:
    """The outputs of the layers, from the first to the last that guidance uses: (N, C, h, w) each."""
    layers = range(network.default_layers[-1] + 1)
    with torch.no_grad():
        parts = [network.forward_intermediates(batch, indices=layers)[1] for batch in images.split(BATCH)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _saliency(network: Any, images: Tensor, classes: Tensor) -> dict[str, np.ndarray | None]:
    cam = saliency.grad_cam(network, images, classes)
    return {
        "saliency": saliency.plain(network, images, classes).cpu().numpy(),
        "smooth": saliency.smooth(network, images, classes).cpu().numpy(),
        "grad_cam": None if cam is None else cam.cpu().numpy(),
    }


def _attention(weights: Sequence[Tensor], grids: Sequence[attention.Grid], *, height: int) -> dict[str, np.ndarray | None]:
    if not weights:
        return {}
    last = attention.of_class_token(weights[-1], grids[-1], pictures=len(weights[0]))
    rolled = attention.rollout(weights, grids[-1], pictures=len(weights[0]))
    return {
        "attention": None if last is None else last[:SHOWN].cpu().numpy(),
        "rollout": None if rolled is None else rolled[:SHOWN].cpu().numpy(),
        "divergence": np.array([attention.divergence(each) for each in weights]),
        "distance": np.array([attention.distance(each, grids, height=height) for each in weights]),
    }


def _blockness(network: Any, images: Tensor, labels: Tensor, patch: int) -> np.ndarray:
    pairs = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    maps = torch.cat([saliency.plain(network, pictures, classes) for pictures, classes in pairs])
    return np.array(saliency.blockness(maps, patch))
