"""Against what the papers' own code computed. The vectors are not part of the project: skipped, loudly, where they are absent.

ESPALIER_REFERENCE names their folder; beside the project, ../shared/reference is found by itself.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import Attention as TimmAttention
from timm.models.swin_transformer import WindowAttention

from pipeline.models.attention import Attention, ClassAttention, Locality, LocalWindowAttention, TalkingHeads
from pipeline.models.resnet import CifarResNet
from pipeline.models.t2t import TokenTransformer
from pipeline.models.tokens import ShiftedPatchEmbedding, ShiftedPatchPooling, shifted
from pipeline.models.vit import VisionTransformer
from pipeline.models.zoo import PitAttention, PitPooling
from pipeline.training.guidance import guidance_loss

FOLDER = Path(os.environ.get("ESPALIER_REFERENCE", "../shared/reference"))
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"NO GOLDEN VECTORS: {FOLDER} is absent")


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def renamed(vectors: dict[str, torch.Tensor], prefix: str, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The vectors of one kind ("w." weights, "g." gradients, "b." buffers) under our names."""
    found = {}
    for key, value in vectors.items():
        if key.startswith(prefix):
            ours = key.removeprefix(prefix)
            for theirs, mine in names.items():
                ours = ours.replace(theirs, mine)
            found[ours] = value
    return found


def check(module: torch.nn.Module, vectors: dict[str, torch.Tensor], names: dict[str, str], call=None) -> None:
    """Same weights, same input: same output, and the same gradients of sum(output ** 2).

    call(input): how the module is called on it, where that is not as it is.
    """
    module.load_state_dict(renamed(vectors, "w.", names) | renamed(vectors, "b.", names), strict=False)
    assert {name for name, _ in module.named_parameters()} == set(renamed(vectors, "w.", names))
    images = vectors["input"].requires_grad_()
    output = (call or module.eval())(images)
    torch.testing.assert_close(output, vectors["output"], **TOLERANCE)
    output.square().sum().backward()
    torch.testing.assert_close(images.grad, vectors["grad_input"], rtol=1e-4, atol=1e-4)
    gradients = renamed(vectors, "g.", names)
    for name, parameter in module.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)


LSA = {"plain": Locality(), "lsa": Locality.of(True)}
SPT = {"merging.1": "norm", "merging.2": "projection"}
ATTENTION = {"to_qkv": "qkv", "to_out.0": "projection"}
VIT = {
    "pos_embedding": "pos_embed",
    "to_patch_embedding.1": "patch_embed.projection",
    "to_patch_embedding.merging.1": "patch_embed.norm",
    "to_patch_embedding.merging.2": "patch_embed.projection",
    "transformer.layers.": "blocks.",
    ".0.norm.": ".norm1.",
    ".0.fn.to_out.0": ".attention.projection",
    ".0.fn.to_qkv": ".attention.qkv",
    ".0.fn.scale": ".attention.scale",
    ".1.norm.": ".norm2.",
    ".1.fn.net.0": ".mlp.0",
    ".1.fn.net.3": ".mlp.2",
    "mlp_head.0": "norm",
    "mlp_head.1": "head",
}
RESNET = {
    "stem.conv": "stem.0",
    "stem.bn": "stem.1",
    "f.a_bn": "branch.1",
    "f.b_bn": "branch.4",
    "f.a.": "branch.0.",
    "f.b.": "branch.3.",
    "proj": "shortcut.0",
    "b1.bn": "b1.shortcut.1",
    "s1.b1": "stages.0.0",
    "s2.b1": "stages.1.0",
    "s3.b1": "stages.2.0",
    "head.fc": "head",
}


@pytest.mark.parametrize("patch_size", [2, 3, 4])
def test_patch_shifting(patch_size):
    vectors = golden("patch_shifting")
    torch.testing.assert_close(shifted(vectors["input"], patch_size // 2), vectors[f"output_patch{patch_size}"])


@pytest.mark.parametrize(("name", "patch_size", "width"), [("spt_pe", 4, 24), ("spt_pe_p2", 2, 12)])
def test_shifted_patch_embedding(name, patch_size, width):
    check(ShiftedPatchEmbedding(patch_size, 3, width), golden(name), SPT)


@pytest.mark.parametrize("form", LSA)
def test_attention(form):
    check(Attention(24, 3, locality=LSA[form]), golden(f"attn_vit_{form}"), ATTENTION)


def test_attention_of_pit_is_timms():
    names = {"to_qkv": "qkv", "to_out.0": "proj"}
    check(TimmAttention(24, 3, qkv_bias=False), golden("attn_pit_plain"), names)


def test_local_attention_of_pit_takes_over_the_weights_of_timms():
    plain = TimmAttention(24, 3, qkv_bias=False)
    check(PitAttention(plain, LSA["lsa"]), golden("attn_pit_lsa"), ATTENTION)
    torch.testing.assert_close(plain.qkv.weight, golden("attn_pit_lsa")["w.to_qkv.weight"])


@pytest.mark.parametrize("form", LSA)
@pytest.mark.parametrize("masked", ["", "masked_"])
def test_attention_of_swin(form, masked):
    vectors, module = golden(f"attn_swin_{masked}{form}"), WindowAttention(24, 3, window_size=4)
    if form == "lsa":
        module = LocalWindowAttention(module, LSA[form])
    check(module, vectors, {}, call=lambda windows: module(windows, mask=vectors.get("mask")))


CAIT = {"mix_heads_pre_attn": "mix_before", "mix_heads_post_attn": "mix_after", "to_q": "query", "to_kv": "key_value"}


@pytest.mark.parametrize("form", LSA)
def test_attention_of_cait(form):
    names = {**CAIT, "to_out.0": "projection"}
    check(TalkingHeads(24, 3, 8, locality=LSA[form]), golden(f"attn_cait_patch_{form}"), names)
    vectors, module = golden(f"attn_cait_cls_{form}"), ClassAttention(24, 3, 8, locality=LSA[form])
    check(module, vectors, names, call=lambda token: module(torch.cat([token, vectors["context"]], dim=1)))


@pytest.mark.parametrize("form", LSA)
def test_token_transformer_of_t2t(form):
    names = {"attn.scale": "scale", "attn.qkv": "qkv", "attn.proj": "projection", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    check(TokenTransformer(27, 8, locality=LSA[form]), golden(f"t2t_token_transformer_{form}"), names)


def on_map(tokens):
    return tokens.transpose(1, 2).unflatten(2, (6, 6))


def test_shifted_patch_pooling():
    module = ShiftedPatchPooling(24, 48)
    check(module, golden("spt_pool_nocls"), SPT, call=lambda tokens: module(on_map(tokens)).flatten(1, 2))


def test_shifted_patch_pooling_beside_a_class_token():
    module = PitPooling(24, 48)

    def call(tokens):
        pooled, class_tokens = module(on_map(tokens[:, 1:]), tokens[:, :1])
        return torch.cat([class_tokens, pooled.flatten(2).transpose(1, 2)], dim=1)

    check(module, golden("spt_pool_cls"), {"merging.1": "spt.norm", "merging.2": "spt.projection"}, call=call)


@pytest.mark.parametrize(("name", "spt", "lsa"), [("plain", 0, 0), ("spt", 1, 0), ("lsa", 0, 1), ("sl", 1, 1)])
def test_whole_vit(name, spt, lsa):
    network = VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=5,
        embed_dim=24,
        depth=2,
        num_heads=3,
        spt=bool(spt),
        lsa=bool(lsa),
        drop_path_rate=0.1,
    )
    check(network, golden(f"model_vit_{name}"), VIT)


def test_resnet():
    vectors = golden("resnet8_cifar")
    network = CifarResNet(depth=8, num_classes=5)
    network.load_state_dict(renamed(vectors, "w.", RESNET) | renamed(vectors, "b.", RESNET), strict=False)
    features, maps = network.eval().forward_intermediates(vectors["input"], indices=[0, 1, 2])
    torch.testing.assert_close(network.forward_head(features), vectors["output"], **TOLERANCE)
    for index, each in enumerate(maps):
        torch.testing.assert_close(each, vectors[f"feature{index}"], **TOLERANCE)


def test_guidance_loss():
    vectors = golden("guidance_loss")
    students = [vectors[f"student{index}"].requires_grad_() for index in range(3)]
    projected = [
        torch.nn.functional.conv2d(student, vectors[f"w.{index}.weight"], vectors[f"w.{index}.bias"])
        for index, student in enumerate(students)
    ]
    loss = guidance_loss(projected, [vectors[f"teacher{index}"] for index in range(3)])
    torch.testing.assert_close(loss, vectors["loss"][0], **TOLERANCE)
    loss.backward()
    for index, student in enumerate(students):
        torch.testing.assert_close(student.grad, vectors[f"grad_student{index}"], **TOLERANCE)
