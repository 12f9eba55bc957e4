"""Every network by name, from plain settings.

All networks share one interface, which is timm's: forward, forward_features, forward_head, num_features and
forward_intermediates(images, indices=...) -> (features, maps), the maps as (B, C, h, w); and default_layers,
the indices that guidance uses. Adding a network is a settings class in config.py, a module here and two dict entries.
"""

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline.config import Network, Resnet, Vit, default_patch_size
from pipeline.models.resnet import CifarResNet
from pipeline.models.vit import VisionTransformer

FEWEST_TOKENS = 16


def arguments(network: Network, *, image_shape: list[int], classes: int) -> dict[str, Any]:
    """The constructor arguments that settings mean for pictures of shape (H, W, C): plain values, fit for a JSON file."""
    return {"in_chans": image_shape[2], "num_classes": classes, **ARGUMENTS[network.model](network, image_shape[0])}


def build(model: str, arguments: dict[str, Any]) -> nn.Module:
    """The network, freshly initialised from torch's random state."""
    return NETWORKS[model](**arguments)


def _vit_arguments(network: Vit, image_size: int) -> dict[str, Any]:
    patch_size = network.patch_size or default_patch_size(image_size)
    if (tokens := (image_size // patch_size) ** 2) < FEWEST_TOKENS:
        warnings.warn(f"patch_size {patch_size} leaves {tokens} tokens of a picture of {image_size} px", stacklevel=3)
    return {
        "img_size": image_size,
        "patch_size": patch_size,
        "embed_dim": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "spt": network.spt,
        "lsa": network.lsa,
        "drop_path_rate": network.drop_path,
    }


def _resnet_arguments(network: Resnet, _image_size: int) -> dict[str, Any]:
    return {"depth": network.depth, "width": network.width}


NETWORKS: dict[str, Callable[..., nn.Module]] = {"vit": VisionTransformer, "resnet_cifar": CifarResNet}
ARGUMENTS: dict[str, Callable[[Any, int], dict[str, Any]]] = {"vit": _vit_arguments, "resnet_cifar": _resnet_arguments}
