"""The networks that params.yaml can name: their settings, what does not fit a picture, what they mean as arguments.

Defaults are the sizes of the papers. Nothing heavy is imported, so that a misfit is told before anything starts.
Adding a network is a settings class and an entry in `Network` here, a module and an entry in `pipeline.models.NETWORKS`.
"""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from pipeline.section import Count, Positive, Section

Rate = Annotated[float, Field(ge=0, lt=1)]
Split = Annotated[list[Count], Field(min_length=2, max_length=2)]

ARGUMENT = {  # timm's words for ours
    "width": "embed_dim",
    "heads": "num_heads",
    "pool": "global_pool",
    "window": "window_size",
    "dropout": "proj_drop_rate",
    "drop_path": "drop_path_rate",
}


class Settings(Section):
    """What every network has. Sizes are (height, width) of the picture in pixels."""

    drop_path: Rate = 0.0  # stochastic depth

    def misfits(self, height: int, width: int) -> list[str]:
        """What does not fit such a picture, one line each, with the nearest values that would."""
        return []

    def tokens(self, height: int, width: int) -> int | None:
        """How many tokens the picture becomes before any pooling; None for a CNN."""
        return None

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        """What the picture decides: its own size where the network wants it, and settings that are null."""
        return {}

    def arguments(self, height: int, width: int) -> dict[str, Any]:
        """The constructor arguments, plain values."""
        settings = self.model_dump(exclude={"model"}) | self.chosen(height, width)
        return {ARGUMENT.get(key, key): value for key, value in settings.items()}


class Stem(Settings):
    """A convolutional stem in front of the patches (the hybrid of Chai, section 2.4)."""

    stem: list[Count] = []  # channels of the 3x3 convolutions with BatchNorm and ReLU, e.g. [32, 64, 64]; none by default
    stem_stride: Literal[1, 2] = 1  # of the first of them

    def seen(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the patches are cut from."""
        stride = self.stem_stride if self.stem else 1
        return math.ceil(height / stride), math.ceil(width / stride)

    @model_validator(mode="after")
    def _stride_has_a_stem(self) -> "Stem":
        if self.stem_stride != 1 and not self.stem:
            raise ValueError("stem_stride has no effect without a stem; remove it, or give the stem's channels")
        return self


class Lsa(Settings):
    """Locality self-attention, or a part of it (Lee et al. 2021, section 3.3, table 4)."""

    lsa: Literal[False, True, "temperature", "mask"] = False  # the L-form, or the papers' T-form or M-form
    temperature: Positive = 1.0  # in units of sqrt(head width); where LSA learns it, where it starts


class Spt(Settings):
    """Shifted patch tokenization (Lee et al. 2021, section 3.2, supplementary tables 1 and 2)."""

    spt: bool = False
    spt_directions: Literal["diagonal4", "cardinal4", "cardinal8"] = "diagonal4"
    spt_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the patch

    def misfits(self, height: int, width: int) -> list[str]:
        patch = self.patch(height, width) if self.spt and hasattr(self, "patch") else None
        if patch is None or int(patch * self.spt_ratio) > 0:
            return super().misfits(height, width)
        least = math.ceil(1 / self.spt_ratio)
        line = f"spt_ratio {self.spt_ratio:g} of patch_size {patch} shifts by no pixel; patch_size {least} would by one"
        return [line, *super().misfits(height, width)]

    @model_validator(mode="after")
    def _details_have_spt(self) -> "Spt":
        for key in ("spt_directions", "spt_ratio", "spt_pooling"):
            if not self.spt and key in type(self).model_fields and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect without spt; remove it, or set spt: true")
        return self


class PatchSize(Stem):
    """Square patches that must divide the picture."""

    patch_size: Count | None = None  # pixels; null: the divisor of image_size nearest to an eighth of it

    def patch(self, height: int, width: int) -> int:
        """The patch size, for such a picture."""
        return self.patch_size or default_patch_size(*self.seen(height, width))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch, (height, width) = self.patch(height, width), self.seen(height, width)
        return height // patch, width // patch

    def tokens(self, height: int, width: int) -> int:
        return math.prod(self.grid(height, width))

    def misfits(self, height: int, width: int) -> list[str]:
        patch, (rows, columns) = self.patch(height, width), self.seen(height, width)
        if rows % patch == 0 and columns % patch == 0:
            return super().misfits(height, width)
        whole = "data.image_size" if (rows, columns) == (height, width) else "the stem's map of"
        picture = f"{rows}" if rows == columns else f"{rows} x {columns}"
        return [
            f"patch_size {patch} does not divide {whole} {picture}; {nearest_divisors(math.gcd(rows, columns), patch)} would"
        ]

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return {"img_size": _size(height, width), "patch_size": self.patch(height, width)}


class VitSettings(PatchSize, Lsa, Spt):
    """Our ViT: by default that of Lee et al. 2021, section 4.1.2."""

    width: Count = 192
    depth: Count = 9
    heads: Count = 12
    mlp_ratio: Positive = 2.0
    mla: list[Literal["query", "key", "value"]] = []  # multi-head latent attention: projections of low rank (Wu 2025)
    mla_rank: Count = 64
    class_tokens: Count = 1  # concatenated for the head
    distillation_token: bool = False  # one more, whose own head learns from a teacher's answers (Touvron et al. 2021)
    pool: Literal["token", "avg"] = "token"  # what the head sees: class tokens, or the mean of the patches
    position: Literal["learned", "sincos", "none"] = "learned"
    dropout: Rate = 0.0  # of what attention and MLP give
    drop_path_schedule: Literal["constant", "linear"] = "constant"  # linear: from zero in the first block to drop_path
    whitening: bool = False  # the patch embedding starts as a whitening of the training pictures (Wu 2025)

    @model_validator(mode="after")
    def _details_have_an_effect(self) -> "VitSettings":
        if self.pool == "avg" and self.class_tokens != 1:
            raise ValueError(f"class_tokens {self.class_tokens} has no effect with pool avg; remove it, or set pool: token")
        if self.distillation_token and (self.pool == "avg" or self.class_tokens != 1):
            raise ValueError("distillation_token stands beside one class token: set pool: token and class_tokens: 1")
        if self.whitening and self.stem:
            raise ValueError("whitening starts the patch embedding from pixels, but a stem is in front of it; remove one")
        return self

    def misfits(self, height: int, width: int) -> list[str]:
        mistakes = _uneven_heads(self.width, self.heads)
        if self.position == "sincos" and self.width % 4:
            mistakes.append(
                f"width {self.width} is no multiple of 4, as position sincos needs; {_multiples(self.width, 4)} are"
            )
        if self.mla and self.mla_rank >= self.width:
            mistakes.append(f"mla_rank {self.mla_rank} saves nothing at width {self.width}; {self.width // 3} would")
        return mistakes + super().misfits(height, width)


class Vit(VitSettings):
    """The plain ViT and, with add-ons, SL-ViT and its relatives."""

    model: Literal["vit"]


class Hybrid(VitSettings):
    """Three convolutions, then a ViT on their map (Chai, section 2.4)."""

    model: Literal["hybrid"]
    stem: Annotated[list[Count], Field(min_length=1)] = [32, 64, 64]


class T2t(Stem, Lsa, Spt):
    """Tokens-to-Token ViT, in the form of Lee et al.'s code."""

    model: Literal["t2t"]
    width: Count = 256
    depth: Count = 12
    heads: Count = 4
    mlp_ratio: Positive = 2.0
    token_width: Count = 64  # of the token transformers
    splits: list[Split] | None = None  # kernel and stride of each soft split; null: down to about 64 tokens

    def soft_splits(self, height: int, width: int) -> list[list[int]]:
        """Three 3x3 splits of stride 2 at 64 px, two at 32 px as in the paper's code; 7x7 of stride 4 first from 128 px on."""
        if self.splits:
            return self.splits
        side = min(self.seen(height, width))
        if side >= 128:
            return [[7, 4], [3, 2], [3, 2]]
        return [[3, 2]] * (3 if side >= 48 else 2 if side >= 16 else 1)

    def tokens(self, height: int, width: int) -> int:
        sides = self.seen(height, width)
        for _, stride in self.soft_splits(height, width):
            sides = math.ceil(sides[0] / stride), math.ceil(sides[1] / stride)
        return math.prod(sides)

    def misfits(self, height: int, width: int) -> list[str]:
        return _uneven_heads(self.width, self.heads)

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return {"img_size": _size(height, width), "splits": self.soft_splits(height, width)}


class Cait(PatchSize, Lsa, Spt):
    """Class-Attention in Image Transformers, at the size of Lee et al.: XXS24 with heads of 64 and MLP ratio 2."""

    model: Literal["cait"]
    width: Count = 192
    depth: Count = 24
    class_depth: Count = 2  # class attention layers
    heads: Count = 4
    head_width: Count = 64
    mlp_ratio: Positive = 2.0


class FinePatches(PatchSize):
    """Patches for networks that pool twice: half as large."""

    def patch(self, height: int, width: int) -> int:
        smallest = 2 if getattr(self, "spt", False) else 1  # a patch of 1 has nothing to shift by
        return self.patch_size or default_patch_size(*self.seen(height, width), grid=16, smallest=smallest)


class Pit(FinePatches, Lsa, Spt):
    """Pooling-based ViT, at the size of PiT-XS with MLP ratio 2, as Lee et al. have it."""

    model: Literal["pit"]
    stride: Count | None = None  # of the patches; null: the patch size. PiT-Ti at 224 px: patch 16, stride 8
    head_width: Count = 48
    depths: Annotated[list[Count], Field(min_length=1)] = [2, 6, 4]
    heads: list[Count] = [2, 4, 8]
    mlp_ratio: Positive = 2.0
    spt_pooling: bool = False  # shifted patch tokenization as pooling, too

    @model_validator(mode="after")
    def _stages_agree(self) -> "Pit":
        _same_length(self.depths, self.heads)
        if self.spt and self.stride not in (None, self.patch_size):
            raise ValueError(f"stride {self.stride} cannot be had with spt, whose patches do not overlap; remove one")
        return self

    def misfits(self, height: int, width: int) -> list[str]:
        return Spt.misfits(self, height, width) if self.stride else super().misfits(height, width)

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return super().chosen(height, width) | {"stride": self.stride or self.patch(height, width)}


class Swin(FinePatches, Lsa, Spt):
    """Swin transformer, at the size of Lee et al. (windows of 4 x 4)."""

    model: Literal["swin"]
    width: Count = 96  # of the first stage; doubles with each
    depths: Annotated[list[Count], Field(min_length=1)] = [2, 6, 4]
    heads: list[Count] = [3, 6, 12]
    window: Count | None = None  # tokens a side; null: 4, or the last map's side where that is smaller
    mlp_ratio: Positive = 2.0
    spt_pooling: bool = False  # shifted patch tokenization as pooling, too

    @model_validator(mode="after")
    def _stages_agree(self) -> "Swin":
        _same_length(self.depths, self.heads)
        return self

    def last_side(self, height: int, width: int) -> int:
        """The shorter side of the last stage's map, in tokens."""
        return math.ceil(min(self.grid(height, width)) / 2 ** (len(self.depths) - 1))

    def misfits(self, height: int, width: int) -> list[str]:
        mistakes = super().misfits(height, width)
        for stage, heads in enumerate(self.heads):
            mistakes += [f"{line} (stage {stage + 1})" for line in _uneven_heads(self.width * 2**stage, heads)]
        side = self.last_side(height, width)
        if self.window and self.window > side:
            mistakes.append(f"window {self.window} is larger than the last map, {side} tokens a side; up to {side} would fit")
        return mistakes

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        window = self.window or min(4, self.last_side(height, width))
        return super().chosen(height, width) | {"window": window}


class Deit(PatchSize):
    """DeiT (Touvron et al. 2021, table 1)."""

    model: Literal["deit"]
    variant: Literal["tiny", "small"] = "tiny"
    distillation_token: bool = False  # beside the class token; its own head learns from a teacher's answers


class Convit(PatchSize):
    """ConViT-Ti (d'Ascoli et al. 2021, table 1): ten layers of gated positional self-attention, then two of the usual."""

    model: Literal["convit"]
    width: Count = 192
    depth: Count = 12
    heads: Count = 4
    local_layers: Annotated[int, Field(ge=0)] = 10
    mlp_ratio: Positive = 4.0

    @model_validator(mode="after")
    def _some_layer_has_the_class_token(self) -> "Convit":
        if self.local_layers >= self.depth:
            raise ValueError(f"local_layers {self.local_layers} leaves none of depth {self.depth} to the class token")
        return self

    def misfits(self, height: int, width: int) -> list[str]:
        mistakes = _uneven_heads(self.width, self.heads) + super().misfits(height, width)
        if height != width:
            side = min(height, width)
            mistakes.append(f"model convit needs square pictures, not {height} x {width}; {side} x {side} would do")
        return mistakes


class Pyramid(Settings):
    """Four stages, each half as wide and high as the one before."""

    stride: Literal[1, 2, 4] | None = None  # of the patch embedding; null: the largest that leaves a last map of 4 x 4

    def first_stride(self, height: int, width: int) -> int:
        """The stride, for such a picture; the papers' 4 from 128 px on."""
        return self.stride or next((stride for stride in (4, 2) if min(height, width) >= 32 * stride), 1)

    def tokens(self, height: int, width: int) -> int:
        stride = self.first_stride(height, width)
        return math.ceil(height / stride) * math.ceil(width / stride)

    def misfits(self, height: int, width: int) -> list[str]:
        stride, side = self.first_stride(height, width), min(height, width)
        fits = [each for each in (1, 2, 4) if side >= 8 * each]
        if stride in fits:
            return []
        way_out = f"{fits[-1]} would fit" if fits else "8 px are the least"
        return [f"stride {stride} leaves less than 8 tokens a side of data.image_size {side}; {way_out}"]

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return {"stride": self.first_stride(height, width)}


class Pvt(Pyramid):
    """PVT-Tiny (Wang et al. 2021, table 1)."""

    model: Literal["pvt"]

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return super().chosen(height, width) | {"img_size": _size(height, width)}


class PvtV2(Pyramid):
    """PVTv2-B0 (Wang et al. 2022, table 1)."""

    model: Literal["pvt_v2"]


class Cct(Lsa):
    """Compact convolutional transformer: by default CCT-7/3x1 (Hassani et al. 2021, table 1)."""

    model: Literal["cct"]
    width: Count = 256
    depth: Count = 7
    heads: Count = 4
    mlp_ratio: Positive = 2.0
    kernel: Count = 3  # of the convolutions that make the tokens
    convolutions: Count | None = None  # each followed by pooling to half the size; null: 1 up to 32 px, then 2, 3 from 128 px

    def halvings(self, height: int, width: int) -> int:
        """How many convolutions, for such a picture."""
        side = min(height, width)
        return self.convolutions or (1 if side < 48 else 2 if side < 128 else 3)

    def tokens(self, height: int, width: int) -> int:
        factor = 2 ** self.halvings(height, width)
        return math.ceil(height / factor) * math.ceil(width / factor)

    def misfits(self, height: int, width: int) -> list[str]:
        return _uneven_heads(self.width, self.heads)

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return {"img_size": _size(height, width), "convolutions": self.halvings(height, width)}


class Cvt(Settings):
    """CvT-13 (Wu et al. 2021, table 2)."""

    model: Literal["cvt"]
    stride: Literal[1, 2, 4] | None = None  # of the first convolution; null: 4 from 128 px on, 2 from 64 px, then 1

    def first_stride(self, height: int, width: int) -> int:
        """The stride, for such a picture."""
        side = min(height, width)
        return self.stride or (4 if side >= 128 else 2 if side >= 64 else 1)

    def tokens(self, height: int, width: int) -> int:
        stride = self.first_stride(height, width)
        return math.ceil(height / stride) * math.ceil(width / stride)

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return {"stride": self.first_stride(height, width)}


class Resnet(Section):
    """The CIFAR ResNet of He et al. 2016, section 4.2."""

    model: Literal["resnet_cifar"]
    depth: Annotated[int, Field(ge=8)] = 56  # 6n + 2
    width: Count = 16  # channels of the first of the three stages

    def misfits(self, height: int, width: int) -> list[str]:
        lower = (self.depth - 2) // 6 * 6 + 2
        return [f"depth {self.depth} is not 6n + 2; {lower} or {lower + 6} would be"] if self.depth != lower else []

    def tokens(self, height: int, width: int) -> None:
        return None

    def arguments(self, height: int, width: int) -> dict[str, Any]:
        return self.model_dump(exclude={"model"})


class Cnn(Settings):
    """A CNN made for ImageNet, with a stem of either kind."""

    stem: Literal["small", "imagenet"] | None = None  # null: imagenet from 128 px on

    def chosen(self, height: int, width: int) -> dict[str, Any]:
        return {"stem": self.stem or ("imagenet" if min(height, width) >= 128 else "small")}


class ImagenetResnet(Cnn):
    """ResNet-18 and -50 (He et al. 2016, table 1), Wide-ResNet-50-2 (Zagoruyko and Komodakis 2016)."""

    model: Literal["resnet"]
    variant: Literal["18", "50", "wide_50_2"] = "18"


class Efficientnet(Cnn):
    """EfficientNet-B0 (Tan and Le 2019, table 1)."""

    model: Literal["efficientnet"]


AnyNetwork = (
    Vit | Hybrid | T2t | Cait | Pit | Swin | Deit | Convit | Pvt | PvtV2 | Cct | Cvt | Resnet | ImagenetResnet | Efficientnet
)
Network = Annotated[AnyNetwork, Field(discriminator="model")]


def models() -> dict[str, type[Any]]:
    """The settings class of each model name."""
    return {get_args(network.model_fields["model"].annotation)[0]: network for network in get_args(AnyNetwork)}


def nearest_divisors(number: int, wish: int) -> str:
    """The divisors of `number` next to `wish`, for an error message: "4 or 8"."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below = [divisor for divisor in divisors if divisor < wish][-1:]
    above = [divisor for divisor in divisors if divisor > wish][:1]
    return " or ".join(str(divisor) for divisor in below + above)


def default_patch_size(height: int, width: int | None = None, *, grid: int = 8, smallest: int = 2) -> int:
    """The common divisor of the picture's sides nearest to the shorter one over `grid`, at least `smallest` where one fits.

    64 tokens of a square picture, as in the papers.
    """
    short = min(height, width or height)
    both = math.gcd(height, width or height)
    divisors = [divisor for divisor in range(smallest, short // 2 + 1) if both % divisor == 0]
    return min(divisors, key=lambda divisor: (abs(divisor - short / grid), divisor), default=1)


def _size(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _uneven_heads(width: int, heads: int) -> list[str]:
    if width % heads == 0:
        return []
    return [f"heads {heads} does not divide width {width}; {nearest_divisors(width, heads)} would"]


def _multiples(number: int, of: int) -> str:
    lower = number // of * of
    return " and ".join(str(multiple) for multiple in (lower, lower + of) if multiple)


def _same_length(depths: list[int], heads: list[int]) -> None:
    if len(depths) != len(heads):
        raise ValueError(f"depths has {len(depths)} stages and heads {len(heads)}; give one number of each for every stage")
