"""Which pixels a network's answer hangs on.

Pictures are (B, C, H, W) as the network sees them, classes (B,) those whose scores (logits) are explained, and maps come
back as (B, H, W), not negative.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NOISY_COPIES = 16
NOISE = 0.15  # of a picture's range, as Smilkov et al. 2017 recommend (10 to 20 %)


def gradients(network: Any, images: Tensor, classes: Tensor) -> Tensor:
    """The derivative of each picture's class score with respect to its own pixels, (B, C, H, W)."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        score = network(images).gather(1, classes[:, None]).sum()
        return torch.autograd.grad(score, images)[0]


def plain(network: Any, images: Tensor, classes: Tensor) -> Tensor:
    """The size of the gradient, the maximum over channels (Simonyan et al. 2013, section 3.1)."""
    return gradients(network, images, classes).abs().amax(1)


def smooth(network: Any, images: Tensor, classes: Tensor, *, seed: int = 0) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017): the same of the mean gradient over copies with Gaussian noise."""
    deviation = NOISE * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(images)
    for _ in range(NOISY_COPIES):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        total += gradients(network, images + deviation * noise, classes)
    return (total / NOISY_COPIES).abs().amax(1)


def grad_cam(network: Any, images: Tensor, classes: Tensor) -> Tensor | None:
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2), resized to the picture (bilinear).

    Only where the head sees maps (B, C, h, w); a class token leaves the gradient of all other tokens zero: None.
    """
    with torch.enable_grad():
        features = network.forward_features(images)
        if features.ndim != 4 or features.shape[1] != network.num_features:
            return None
        score = network.forward_head(features).gather(1, classes[:, None]).sum()
        weights = torch.autograd.grad(score, features)[0].mean((2, 3), keepdim=True)
    maps = (weights * features.detach()).sum(1, keepdim=True).relu()
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def blockness(maps: Tensor, patch: int) -> tuple[float, float]:
    """How much of the maps' variance lies between patches rather than inside them, and that for patches moved by a half.

    Each is the share explained by the grid, less what noise would give by chance (epsilon squared, Kelley 1935): 0 for
    noise, 1 for squares of one value. Smooth maps score in both, squares that follow the network's patches in the first
    only. The mean over pictures; a map of one value has no share. NaN where no grid of several patches fits.
    """
    moved = maps[:, patch // 2 : patch // 2 - patch, patch // 2 : patch // 2 - patch]
    return _explained(maps, patch), _explained(moved, patch)


def _explained(maps: Tensor, patch: int) -> float:
    rows, columns = maps.shape[1] // patch, maps.shape[2] // patch
    if patch < 2 or rows * columns < 2:
        return float("nan")
    cut = maps[:, : rows * patch, : columns * patch].double().unflatten(2, (columns, patch)).unflatten(1, (rows, patch))
    pixels = cut[0].numel()
    inside = (cut - cut.mean((2, 4), keepdim=True)).square().sum((1, 2, 3, 4)) / (pixels - rows * columns)
    whole = (cut - cut.mean((1, 2, 3, 4), keepdim=True)).square().sum((1, 2, 3, 4)) / (pixels - 1)
    return float((1 - inside[whole > 0] / whole[whole > 0]).mean())
