"""Our networks under timm's roof: import this module, and timm knows them.

`timm.create_model("espalier_sl_vit", img_size=64, num_classes=200)`, `timm.list_models("espalier_*")`, and
`timm.create_model("local-dir:models/unguided/vit/0", pretrained=True)` for any model folder of ours.
"""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from pipeline.models import NETWORKS

SL = {"spt": True, "lsa": True}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # the papers' forms by a name of their own
    "sl_vit": ("vit", SL),
    "sl_t2t": ("t2t", SL),
    "sl_cait": ("cait", SL),
    "sl_pit": ("pit", {**SL, "spt_pooling": True}),
    "sl_swin": ("swin", {**SL, "spt_pooling": True}),
    "hybrid": ("hybrid", {"stem": [32, 64, 64]}),
    "deit_tiny": ("deit", {"variant": "tiny"}),
    "deit_small": ("deit", {"variant": "small"}),
    **{f"resnet{depth}_cifar": ("resnet_cifar", {"depth": depth}) for depth in (20, 32, 44, 56, 110)},
    "resnet18": ("resnet", {"variant": "18"}),
    "resnet50": ("resnet", {"variant": "50"}),
    "wide_resnet50_2": ("resnet", {"variant": "wide_50_2"}),
}


def _register(name: str, network: Callable[..., nn.Module], preset: dict[str, Any]) -> None:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return build_model_with_cfg(network, create.__name__, pretrained, **{**preset, **arguments})

    create.__name__ = f"espalier_{name}"
    create.__doc__ = network.__doc__
    register_model(create)


for _name, (_network, _preset) in {**{name: (name, {}) for name in NETWORKS}, **PRESETS}.items():
    _register(_name, NETWORKS[_network], _preset)
