"""timm's networks at the sizes of the papers, with feature taps, a stem in front where wished, and SPT and LSA put in.

An add-on that is off leaves timm's network as timm builds it, but for CaiT, whose heads Lee et al. have wider.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.models import cait, convit, deit, efficientnet, pit, pvt_v2, resnet, swin_transformer, vision_transformer
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from torch import Tensor, nn

from pipeline.models.attention import Attention, ClassAttention, Locality, LocalWindowAttention, TalkingHeads
from pipeline.models.base import first_middle_last
from pipeline.models.tapped import Tapped
from pipeline.models.tokens import ConvStem, ShiftedPatchEmbedding, ShiftedPatchPooling, behind_stem
from pipeline.models.vit import truncated


class Deit(Tapped, vision_transformer.VisionTransformer):
    """DeiT-Tiny and -Small (Touvron et al. 2021, table 1). Initialisation: timm's, N(0, 0.02) cut off."""

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 16,
        variant: str = "tiny",
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        drop_path_rate: float = 0.0,
        **sizes: Any,
    ) -> None:
        size, channels = behind_stem(img_size, in_chans, stem, stem_stride)
        super().__init__(
            img_size=size,
            in_chans=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
            **{**DEIT[variant], **sizes},
        )
        self.adopt(*_blocks(self.blocks, self.patch_embed.grid_size), _stem(in_chans, stem, stem_stride))


class DistilledDeit(Deit, deit.VisionTransformerDistilled):
    """DeiT with a distillation token, whose head answers too; the logits are the mean of both heads'."""


def deit_of(*, distillation_token: bool = False, **arguments: Any) -> nn.Module:
    """DeiT, with a distillation token or without."""
    return (DistilledDeit if distillation_token else Deit)(**arguments)


class Convit(Tapped, convit.ConVit):
    """ConViT-Ti (d'Ascoli et al. 2021). Initialisation: timm's, positional attention as convolutions (section 3)."""

    def __init__(
        self,
        *,
        img_size: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        local_layers: int = 10,
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        size, channels = behind_stem(img_size, in_chans, stem, stem_stride)
        super().__init__(
            img_size=size,
            in_chans=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            embed_dim=embed_dim // num_heads,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            local_up_to_layer=local_layers,
            drop_path_rate=drop_path_rate,
        )
        for block in self.blocks[:local_layers]:  # once, not in the first step
            block.attn.rel_indices = block.attn.get_rel_indices(self.num_patches)
        self.adopt(*_blocks(self.blocks, self.patch_embed.grid_size), _stem(in_chans, stem, stem_stride))


class Cait(Tapped, cait.Cait):
    """CaiT at the size of Lee et al. (24 + 2 layers, 4 heads of 64, MLP ratio 2), plain or with SPT and LSA.

    timm's, with Lee et al.'s attention. As in Touvron et al. and timm, class attention sees normalised patches, and
    LayerScale starts by the depth of the network. Initialisation: timm's; heads are mixed by N(0, 1) as in Lee et al.'s code.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 8,
        embed_dim: int = 192,
        depth: int = 24,
        class_depth: int = 2,
        num_heads: int = 4,
        head_width: int = 64,
        mlp_ratio: float = 2.0,
        spt: bool = False,
        spt_directions: str = "diagonal4",
        spt_ratio: float = 0.5,
        lsa: bool | str = False,
        temperature: float = 1.0,
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        size, channels = behind_stem(img_size, in_chans, stem, stem_stride)
        locality = Locality.of(lsa, temperature)

        def attention(kind: type[TalkingHeads]) -> Callable[..., nn.Module]:
            return lambda dim, num_heads, **_: kind(dim, num_heads, head_width, locality=locality)

        super().__init__(
            img_size=size,
            in_chans=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            depth_token_only=class_depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            mlp_ratio_token_only=mlp_ratio,
            attn_block=attention(TalkingHeads),
            attn_block_token_only=attention(ClassAttention),
            init_values=0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6,  # Touvron et al. 2021, section 4.1
            drop_path_rate=drop_path_rate,
        )
        blocks = _blocks(self.blocks, self.patch_embed.grid_size)
        if spt:
            shape = patch_size, channels, embed_dim
            self.patch_embed = ShiftedPatchEmbedding(*shape, directions=spt_directions, ratio=spt_ratio).apply(truncated)
        self.adopt(*blocks, _stem(in_chans, stem, stem_stride))


class Pit(Tapped, pit.PoolingVisionTransformer):
    """PiT, by default of the size of Lee et al. (PiT-XS with MLP ratio 2), plain or with SPT and LSA.

    timm's, hence with biases of query, key and value and with one depthwise convolution as pooling, where Lee et al. have
    none and a 1x1 convolution behind it: 2.5 % fewer parameters without SPT pooling. Initialisation: timm's, torch's own.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 4,
        stride: int | None = None,
        head_width: int = 48,
        depths: Sequence[int] = (2, 6, 4),
        num_heads: Sequence[int] = (2, 4, 8),
        mlp_ratio: float = 2.0,
        spt: bool = False,
        spt_directions: str = "diagonal4",
        spt_ratio: float = 0.5,
        spt_pooling: bool = False,
        lsa: bool | str = False,
        temperature: float = 1.0,
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        size, channels = behind_stem(img_size, in_chans, stem, stem_stride)
        super().__init__(
            img_size=size,
            in_chans=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            stride=stride or patch_size,
            base_dims=[head_width] * len(depths),
            depth=list(depths),
            heads=list(num_heads),
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        blocks = [block for stage in self.transformers for block in stage.blocks]
        grids = _halved(self.patch_embed.grid_size, depths)
        shifts: dict[str, Any] = {"directions": spt_directions, "ratio": spt_ratio}
        if spt:
            self.patch_embed = PitEmbedding(patch_size, channels, head_width * num_heads[0], **shifts)
        if spt_pooling:
            for before, stage, heads in zip(num_heads, self.transformers[1:], num_heads[1:], strict=False):
                stage.pool = PitPooling(head_width * before, head_width * heads, **shifts)
        locality = Locality.of(lsa, temperature)
        if locality != Locality():
            for block in blocks:
                block.attn = PitAttention(block.attn, locality)
        tapped = [(block, partial(_token_map, grid)) for block, grid in zip(blocks, grids, strict=True)]
        self.adopt(tapped, first_middle_last(len(blocks)), _stem(in_chans, stem, stem_stride))


class PitAttention(Attention):
    """Local attention that takes over the weights of timm's `plain`."""

    def __init__(self, plain: Any, locality: Locality) -> None:
        super().__init__(plain.proj.in_features, plain.num_heads, locality=locality)
        self.qkv, self.projection = plain.qkv, plain.proj

    def forward(self, tokens: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        return super().forward(tokens)


class PitEmbedding(ShiftedPatchEmbedding):
    """SPT as patch embedding, (B, C, H, W) -> (B, width, h, w)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.grid(images).permute(0, 3, 1, 2)


class PitPooling(nn.Module):
    """SPT as pooling beside class tokens, which have a linear map of their own (Lee et al. 2021, eq. 8)."""

    def __init__(self, channels: int, width: int, *, directions: str = "diagonal4", ratio: float = 0.5) -> None:
        super().__init__()
        self.spt = ShiftedPatchPooling(channels, width, directions=directions, ratio=ratio)
        self.class_linear = nn.Linear(channels, width)

    def forward(self, maps: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.spt(maps).permute(0, 3, 1, 2), self.class_linear(class_tokens)


class Swin(Tapped, swin_transformer.SwinTransformer):
    """Swin at the size of Lee et al. (96 wide, 2 + 6 + 4 layers, windows of 4 x 4, MLP ratio 2), plain or with SPT and LSA.

    timm's, hence without Lee et al.'s absolute positions beside the relative ones (0.3 % of the parameters).
    Initialisation: timm's, truncated normal (0.02).
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 6, 4),
        num_heads: Sequence[int] = (3, 6, 12),
        window_size: int = 4,
        mlp_ratio: float = 2.0,
        spt: bool = False,
        spt_directions: str = "diagonal4",
        spt_ratio: float = 0.5,
        spt_pooling: bool = False,
        lsa: bool | str = False,
        temperature: float = 1.0,
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        size, channels = behind_stem(img_size, in_chans, stem, stem_stride)
        super().__init__(
            img_size=size,
            in_chans=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        blocks = [block for stage in self.layers for block in stage.blocks]
        shifts: dict[str, Any] = {"directions": spt_directions, "ratio": spt_ratio}
        if spt:
            self.patch_embed = SwinEmbedding(patch_size, channels, embed_dim, **shifts).apply(truncated)
        if spt_pooling:
            for index, stage in enumerate(self.layers[1:]):
                width = embed_dim * 2**index
                stage.downsample = SwinPooling(width, 2 * width, **shifts).apply(truncated)
        locality = Locality.of(lsa, temperature)
        if locality != Locality():
            for block in blocks:
                block.attn = LocalWindowAttention(block.attn, locality)
        tapped = [(block, _last_axis_map) for block in blocks]
        self.adopt(tapped, first_middle_last(len(blocks)), _stem(in_chans, stem, stem_stride))


class SwinEmbedding(ShiftedPatchEmbedding):
    """SPT as patch embedding, (B, C, H, W) -> (B, h, w, width)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.grid(images)


class SwinPooling(ShiftedPatchPooling):
    """SPT as pooling, (B, H, W, C) -> (B, h, w, width)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 3, 1, 2))


class PvtV2(Tapped, pvt_v2.PyramidVisionTransformerV2):
    """PVTv2-B0 (Wang et al. 2022, table 1), for pictures of any size. Initialisation: timm's.

    stride: of the first convolution; 4 in the paper, less for small pictures.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        stride: int = 4,
        widths: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dims=tuple(widths),
            depths=tuple(depths),
            num_heads=tuple(heads),
            drop_path_rate=drop_path_rate,
        )
        self.patch_embed.proj.stride = (stride, stride)
        blocks = [block for stage in self.stages for block in stage.blocks]
        layers = [0, len(blocks) // 2 - 1, len(blocks) - 1]  # Li et al. 2022: 0, 3, 7
        self.adopt([(block, _sized_token_map) for block in blocks], layers, nn.Identity())


class Resnet(Tapped, resnet.ResNet):
    """ResNet-18, -50 (He et al. 2016) and Wide-ResNet-50-2 (Zagoruyko and Komodakis 2016) for pictures of any size.

    stem: "imagenet", 7x7 of stride 2 and pooling; or "small", 3x3 of stride 1. Initialisation: timm's (He normal), but
    the last BatchNorm of a block starts at one, as in He et al. Taps are the four stages.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        variant: str = "18",
        stem: str = "imagenet",
        drop_path_rate: float = 0.0,
        **sizes: Any,
    ) -> None:
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            zero_init_last=False,
            **{**RESNETS[variant], **sizes},
        )
        if stem == "small":
            self.conv1 = nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        self.adopt([(stage, _as_it_is) for stage in stages], [0, 1, 2], nn.Identity())


class Efficientnet(Tapped, efficientnet.EfficientNet):
    """EfficientNet-B0 (Tan and Le 2019, table 1) for pictures of any size. Initialisation: timm's. Taps are the seven stages.

    stem: "imagenet", a first convolution of stride 2, or "small", of stride 1: with it the MACs at 64 px are those of
    Lee et al. (124 M); their 3.7 M parameters are not B0's, which has 4.26 M for 200 classes.
    """

    def __init__(
        self, *, in_chans: int = 3, num_classes: int = 1000, stem: str = "imagenet", drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(
            block_args=decode_arch_def(EFFICIENTNET_B0),
            in_chans=in_chans,
            num_classes=num_classes,
            round_chs_fn=partial(round_channels, multiplier=1.0),
            act_layer=nn.SiLU,
            drop_path_rate=drop_path_rate,
        )
        if stem == "small":
            self.conv_stem.stride = (1, 1)
        self.adopt([(stage, _as_it_is) for stage in self.blocks], [0, 1, 2], nn.Identity())


DEIT = {"tiny": {"embed_dim": 192, "num_heads": 3}, "small": {"embed_dim": 384, "num_heads": 6}}
RESNETS: dict[str, dict[str, Any]] = {
    "18": {"block": resnet.BasicBlock, "layers": (2, 2, 2, 2)},
    "50": {"block": resnet.Bottleneck, "layers": (3, 4, 6, 3)},
    "wide_50_2": {"block": resnet.Bottleneck, "layers": (3, 4, 6, 3), "base_width": 128},
}
EFFICIENTNET_B0 = [  # timm's notation: block, repeats, kernel, stride, expansion, channels, squeeze
    ["ds_r1_k3_s1_e1_c16_se0.25"],
    ["ir_r2_k3_s2_e6_c24_se0.25"],
    ["ir_r2_k5_s2_e6_c40_se0.25"],
    ["ir_r3_k3_s2_e6_c80_se0.25"],
    ["ir_r3_k5_s1_e6_c112_se0.25"],
    ["ir_r4_k5_s2_e6_c192_se0.25"],
    ["ir_r1_k3_s1_e6_c320_se0.25"],
]


def _stem(channels: int, stem: Sequence[int], stride: int) -> nn.Module:
    return ConvStem(channels, stem, stride) if stem else nn.Identity()


def _blocks(blocks: Sequence[nn.Module], grid: tuple[int, int]) -> tuple[list, list[int]]:
    """Taps behind blocks of one grid, and the default ones."""
    return [(block, partial(_token_map, grid)) for block in blocks], first_middle_last(len(blocks))


def _halved(grid: tuple[int, int], depths: Sequence[int]) -> list[tuple[int, int]]:
    """The grid of each block, where every stage has half the rows and columns of the one before, rounded up."""
    sizes = [(math.ceil(grid[0] / 2**stage), math.ceil(grid[1] / 2**stage)) for stage in range(len(depths))]
    return [size for size, depth in zip(sizes, depths, strict=True) for _ in range(depth)]


def _token_map(grid: tuple[int, int], _inputs: Any, tokens: Tensor) -> Tensor:
    """Tokens (B, N, C), class tokens first if there are any, as (B, C, h, w)."""
    return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


def _sized_token_map(inputs: Any, tokens: Tensor) -> Tensor:
    """Tokens of a block whose second input is the size of its map."""
    return tokens.transpose(1, 2).unflatten(2, tuple(inputs[1]))


def _last_axis_map(_inputs: Any, maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def _as_it_is(_inputs: Any, maps: Tensor) -> Tensor:
    return maps
