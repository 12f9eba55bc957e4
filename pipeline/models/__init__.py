"""Every network by name, from plain settings.

All networks share one interface, which is timm's: forward, forward_features, forward_head, num_features, head_hidden_size,
reset_classifier, no_weight_decay, and forward_intermediates(images, indices=...) -> (features, maps), the maps as
(B, C, h, w); and default_layers, the indices that guidance uses.
Adding a network is a settings class in pipeline/networks.py, a module here and an entry in NETWORKS.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.models.cct import CompactTransformer
from pipeline.models.cvt import ConvTransformer
from pipeline.models.pvt import PyramidTransformer
from pipeline.models.resnet import CifarResNet
from pipeline.models.t2t import T2T
from pipeline.models.tokens import whiten
from pipeline.models.vit import VisionTransformer
from pipeline.networks import AnyNetwork
from pipeline.section import UserError

FEWEST_TOKENS = 16
WHITENING_PICTURES = 1024


def _zoo(name: str) -> Callable[..., nn.Module]:
    """A network of timm's, whose import takes seconds and waits until it is wanted."""

    def build(**arguments: Any) -> nn.Module:
        from pipeline.models import zoo

        return getattr(zoo, name)(**arguments)

    return build


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vit": VisionTransformer,
    "hybrid": VisionTransformer,
    "t2t": T2T,
    "cait": _zoo("Cait"),
    "pit": _zoo("Pit"),
    "swin": _zoo("Swin"),
    "deit": _zoo("deit_of"),
    "convit": _zoo("Convit"),
    "pvt": PyramidTransformer,
    "pvt_v2": _zoo("PvtV2"),
    "cct": CompactTransformer,
    "cvt": ConvTransformer,
    "resnet_cifar": CifarResNet,
    "resnet": _zoo("Resnet"),
    "efficientnet": _zoo("Efficientnet"),
}
CLASSIFIERS = {"swin": "head.fc", "resnet": "fc", "efficientnet": "classifier"}  # the last linear layer, where it is not `head`


def classifiers(name: str, arguments: dict[str, Any]) -> str | list[str]:
    """The last linear layer by its name, or two where there is a distillation token: what timm leaves out for other classes."""
    return ["head", "head_dist"] if arguments.get("distillation_token") else CLASSIFIERS.get(name, "head")


def arguments(network: AnyNetwork, *, image_shape: Sequence[int], classes: int) -> dict[str, Any]:
    """The constructor arguments that settings mean for pictures of shape (H, W, C): plain values, fit for a JSON file.

    Raises UserError where the settings do not fit such pictures; warns where they leave few tokens.
    """
    height, width, channels = image_shape
    if mistakes := network.misfits(height, width):
        raise UserError("\n".join(f"{network.model}: {mistake}" for mistake in mistakes))
    tokens = network.tokens(height, width)
    if tokens is not None and tokens < FEWEST_TOKENS:
        patch = f"patch_size {network.patch(height, width)}" if hasattr(network, "patch") else f"model {network.model}"
        picture = f"{height} px" if height == width else f"{height} x {width} px"
        warnings.warn(f"{patch} leaves {tokens} tokens of a picture of {picture}", stacklevel=2)
    return {"in_chans": channels, "num_classes": classes, **network.arguments(height, width)}


def build(model: str, arguments: dict[str, Any]) -> nn.Module:
    """The network, freshly initialised from torch's random state."""
    return NETWORKS[model](**arguments)


def fit_to_pictures(network: Any, sample: Callable[[int], Tensor]) -> None:
    """What a fresh network takes from the training pictures: the whitening, where it is asked for.

    sample(count) gives so many of them as the network sees them, (count, C, H, W). Any other network stays as it is.
    """
    if getattr(network, "whitening", False):
        whiten(network.patch_embed, sample(WHITENING_PICTURES))
