"""Our networks under timm's roof: import this module, and `timm.create_model("espalier_vit", ...)` knows them.

So does `timm.create_model("local-dir:models/unguided/vit/0", pretrained=True)`, for any model folder of ours.
"""

from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from pipeline.models.resnet import CifarResNet
from pipeline.models.vit import VisionTransformer


@register_model
def espalier_vit(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """The small-data ViT, plain or with SPT and LSA; arguments as of VisionTransformer."""
    return build_model_with_cfg(VisionTransformer, "espalier_vit", pretrained, **arguments)


@register_model
def espalier_resnet_cifar(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """The CIFAR ResNet; arguments as of CifarResNet."""
    return build_model_with_cfg(CifarResNet, "espalier_resnet_cifar", pretrained, **arguments)
