"""Laws that hold for every network, and what each add-on promises."""

import copy
import io

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pipeline import config, models, networks, registry
from pipeline.config import UserError
from pipeline.explain import cost
from pipeline.models import zoo
from pipeline.models.attention import Attention, LatentProjections, Locality
from pipeline.models.base import Dropout, DropPath
from pipeline.models.resnet import CifarResNet
from pipeline.models.tokens import DIRECTIONS, PatchEmbedding, ShiftedPatchEmbedding, patches, shifted, whiten
from pipeline.models.vit import VisionTransformer
from pipeline.training import guidance
from tests.conftest import CARD, SL_VIT

SL = {"spt": True, "lsa": True}
SMALL_VIT = {"patch_size": 4, "width": 24, "depth": 3, "heads": 3}
SMALL_PIT = {"depths": [1, 2, 1], "head_width": 8, "heads": [1, 2, 2]}
SMALL_SWIN = {"depths": [1, 2, 1], "width": 12, "heads": [1, 2, 2]}
SMALL_CAIT = {"patch_size": 4, "width": 24, "depth": 3, "class_depth": 1, "heads": 3, "head_width": 8}
NETWORKS = {  # one row a network or form: settings for pictures of 32 px
    "vit": {"model": "vit", **SMALL_VIT},
    "sl_vit": {"model": "vit", **SMALL_VIT, **SL},
    "latent_vit": {"model": "vit", **SMALL_VIT, "mla": ["query", "value"], "mla_rank": 8, "lsa": "temperature"},
    "three_tokens": {"model": "vit", **SMALL_VIT, "class_tokens": 3, "position": "sincos", "lsa": "mask"},
    "mean_vit": {"model": "vit", **SMALL_VIT, "pool": "avg", "position": "none"},
    "dropping_vit": {"model": "vit", **SMALL_VIT, "dropout": 0.1, "drop_path": 0.2, "drop_path_schedule": "linear"},
    "hybrid": {"model": "hybrid", **SMALL_VIT, "stem": [8, 8], "stem_stride": 2},
    "t2t": {"model": "t2t", "width": 24, "depth": 3, "heads": 3, "token_width": 8},
    "sl_t2t": {"model": "t2t", "width": 24, "depth": 3, "heads": 3, "token_width": 8, **SL},
    "cait": {"model": "cait", **SMALL_CAIT},
    "sl_cait": {"model": "cait", **SMALL_CAIT, **SL},
    "pit": {"model": "pit", **SMALL_PIT},
    "sl_pit": {"model": "pit", **SMALL_PIT, **SL, "spt_pooling": True},
    "swin": {"model": "swin", **SMALL_SWIN},
    "sl_swin": {"model": "swin", **SMALL_SWIN, **SL, "spt_pooling": True},
    "hybrid_swin": {"model": "swin", **SMALL_SWIN, "stem": [8], "stem_stride": 2},
    "deit": {"model": "deit", "patch_size": 8},
    "distilled_vit": {"model": "vit", **SMALL_VIT, **SL, "distillation_token": True},
    "distilled_deit": {"model": "deit", "patch_size": 8, "distillation_token": True},
    "convit": {"model": "convit", "patch_size": 4, "width": 16, "depth": 3, "local_layers": 2},
    "pvt": {"model": "pvt"},
    "pvt_v2": {"model": "pvt_v2"},
    "cct": {"model": "cct", "width": 24, "depth": 3, "heads": 3},
    "cvt": {"model": "cvt", "stride": 4},
    "resnet_cifar": {"model": "resnet_cifar", "depth": 8, "width": 4},
    "resnet": {"model": "resnet"},
    "efficientnet": {"model": "efficientnet"},
}
TINY = {  # constructor arguments that make the fixed-size ones small
    "deit": {"depth": 3, "embed_dim": 24},
    "distilled_deit": {"depth": 3, "embed_dim": 24},
    "pvt": {"widths": [8, 8, 16, 16], "heads": [1, 1, 2, 2]},
    "pvt_v2": {"widths": [8, 8, 16, 16], "heads": [1, 1, 2, 2]},
    "cvt": {"widths": [8, 16, 24], "depths": [1, 1, 2], "heads": [1, 2, 3]},
    "resnet": {"layers": [1, 1, 1, 1]},
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def settings_of(name, **changes):
    settings = {**NETWORKS[name], **changes}
    return networks.models()[settings["model"]](**settings)


def build(name, *, shape=(32, 32, 3), classes=5, seed=0, **changes):
    settings = settings_of(name, **changes)
    arguments = models.arguments(settings, image_shape=shape, classes=classes) | TINY.get(name, {})
    torch.manual_seed(seed)
    return models.build(settings.model, arguments)


def classifiers(network, name):
    """The last linear layers, one or two."""
    settings = NETWORKS[name]
    named = models.classifiers(settings["model"], settings)
    return [network.get_submodule(each) for each in ([named] if isinstance(named, str) else named)]


def pictures(count=2, shape=(32, 32, 3), seed=5):
    return torch.randn(count, shape[2], *shape[:2], generator=torch.Generator().manual_seed(seed))


def same_state(one, other):
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


# ---- every network ----


def test_every_model_has_a_row():
    assert {settings["model"] for settings in NETWORKS.values()} == set(models.NETWORKS) == set(networks.models())


@every_network
def test_the_interface_is_kept(name):
    network = build(name).eval()
    features, maps = network.forward_intermediates(pictures(), indices=network.default_layers)
    assert len(maps) == 3 and all(each.ndim == 4 and len(each) == 2 for each in maps)
    logits = network(pictures())
    assert logits.shape == (2, 5) and torch.allclose(network.forward_head(features), logits, atol=1e-6)
    assert torch.equal(network.forward_features(pictures()), features)
    assert network.num_features in features.shape
    assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)
    assert [layer.in_features for layer in classifiers(network, name)] == [network.head_hidden_size] * len(
        classifiers(network, name)
    )
    found = network.get_classifier()
    assert classifiers(network, name) == list(found if isinstance(found, tuple) else [found])
    assert network.no_weight_decay() <= {key for key, _ in network.named_parameters()} | {"dist_token", "reg_token"}


@every_network
def test_taps_are_asked_for_in_any_order_and_leave_nothing_behind(name):
    network = build(name).eval()
    first, last = network.default_layers[0], network.default_layers[2]
    with torch.no_grad():
        forwards = network.forward_intermediates(pictures(), indices=[first, last])[1]
        backwards = network.forward_intermediates(pictures(), indices=[last, first])[1]
        copied = copy.deepcopy(network).forward_intermediates(pictures(), indices=[last])[1]
    assert torch.equal(forwards[0], backwards[1]) and torch.equal(forwards[1], backwards[0])
    assert torch.equal(copied[0], forwards[1])
    assert not any(tap.wanted or tap.map is not None for tap in getattr(network, "taps", []))
    with pytest.raises((IndexError, KeyError)):
        network.forward_intermediates(pictures(), indices=[99])


UNSEEN = (
    "pos_proj.bias",  # ConViT: one number added to all scores of a row, which the softmax does not see
    "stages.2.blocks.1.attention.convolutions.0",  # CvT's last block: only the class token is read behind it
)


@every_network
def test_a_gradient_reaches_every_parameter(name):
    network = build(name)
    F.cross_entropy(network(pictures(4)), torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        if not any(part in key for part in UNSEEN):
            assert parameter.grad.abs().sum() > 0, key


@every_network
def test_a_picture_is_judged_by_itself(name):
    network, batch = build(name).eval(), pictures(3)
    with torch.no_grad():
        assert torch.allclose(network(batch)[1:2], network(batch[1:2]), atol=1e-5)


@every_network
def test_what_is_saved_is_loaded(name):
    network, other = build(name).eval(), build(name, seed=1).eval()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    with torch.no_grad():
        assert torch.equal(network(pictures()), other(pictures()))


@every_network
def test_the_same_seed_gives_the_same_weights(name):
    first, again, other = build(name), build(name), build(name, seed=1)
    assert same_state(first, again) and not same_state(first, other)


@every_network
def test_a_new_head_has_as_many_classes_as_asked_for(name):
    network = build(name).eval()
    network.reset_classifier(7)
    assert network(pictures()).shape == (2, 7) and network.num_classes == 7
    network.reset_classifier(0)
    assert network(pictures()).shape == (2, network.head_hidden_size)


@every_network
def test_bfloat16_and_float32_agree(name):
    network = build(name).eval()
    with torch.no_grad():
        exact = network(pictures())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(pictures()).float()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max().clamp(min=1)


@every_network
def test_stochastic_depth_is_ours_and_off_in_evaluation(name):
    if name.startswith("resnet_cifar"):
        return
    network = build(name, drop_path=0.5)
    assert {type(module).__module__ for module in network.modules() if type(module).__name__ == "DropPath"} == {
        "pipeline.models.base"
    }
    plain = build(name)
    assert torch.equal(network.eval()(pictures()), plain.eval()(pictures()))
    torch.manual_seed(0)
    assert not torch.equal(network.train()(pictures(8)), network(pictures(8)))


@pytest.mark.slow
@every_network
def test_compiled_networks_agree(name):
    network = build(name).eval()
    with torch.no_grad():
        features, maps = network.forward_intermediates(pictures(), indices=network.default_layers)
        compiled = torch.compile(lambda images: network.forward_intermediates(images, indices=network.default_layers))
        for left, right in zip([features, *maps], [compiled(pictures())[0], *compiled(pictures())[1]], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


ANY_SIZE = [name for name in NETWORKS if name in ("pvt", "pvt_v2", "cct", "cvt", "resnet_cifar", "resnet", "efficientnet")]
FITTED = {"patch_size", "stride", "stem_stride"}  # left to the picture where a size is tried


@every_network
@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (96, 96, 1), (150, 150, 3), (48, 64, 3)], ids=str
)
@pytest.mark.filterwarnings("ignore:.*leaves .* tokens")
def test_pictures_of_many_sizes_fit(name, shape):
    if name == "convit" and shape[0] != shape[1]:
        return
    settings = {key: value for key, value in NETWORKS[name].items() if key not in FITTED}
    network_settings = networks.models()[settings["model"]](**settings)
    arguments = models.arguments(network_settings, image_shape=shape, classes=5) | TINY.get(name, {})
    network = models.build(network_settings.model, arguments).eval()
    with torch.no_grad():
        features, maps = network.forward_intermediates(pictures(1, shape), indices=network.default_layers)
    assert network.forward_head(features).isfinite().all()
    ratio = shape[0] / shape[1]
    assert all(abs(each.shape[2] - ratio * each.shape[3]) <= 1 for each in maps)


@pytest.mark.parametrize("student", ["sl_vit", "sl_swin", "pvt", "convit", "cct", "resnet_cifar"])
@pytest.mark.parametrize("teacher", ["resnet_cifar", "efficientnet", "pit"])
def test_any_pair_is_teacher_and_student(student, teacher):
    frame = guidance.Teacher(build(teacher), (32, 32))
    settings = config.Guidance(beta=1.0, schedule="constant")
    student = build(student, shape=(48, 48, 3))
    projections = guidance.projections(student, frame, settings, image_shape=(48, 48, 3), seed=0)
    guided = guidance.GuidedStudent(student, projections, guidance.layers_of(student, settings))
    images = pictures(2, (48, 48, 3))
    loss = guidance.guidance_loss(guided(images)[2], frame(images)[1])
    loss.backward()
    assert loss > 0 and all(projection.weight.grad.abs().sum() > 0 for projection in projections)


@pytest.mark.parametrize("name", ["sl_vit", "sl_swin", "pvt", "cvt"])
def test_taps_work_in_data_parallel_training(name, tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        frame, settings = guidance.Teacher(build("resnet_cifar"), (32, 32)), config.Guidance(beta=1.0, schedule="constant")
        student = build(name, drop_path=0.1)
        projections = guidance.projections(student, frame, settings, image_shape=(32, 32, 3), seed=0)
        guided = DistributedDataParallel(guidance.GuidedStudent(student, projections, student.default_layers))
        for _ in range(2):  # a parameter without a gradient would stop the second step
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, _, maps = guided(pictures(4))
            (guidance.guidance_loss(maps, frame(pictures(4))[1]) + logits.float().logsumexp(1).sum()).backward()
        assert all(parameter.grad is not None for parameter in guided.parameters())
    finally:
        distributed.destroy_process_group()


# ---- sizes of the papers: ../shared/reference/params_flops.md, counted on the authors' code ----


@pytest.mark.parametrize(
    ("settings", "size", "classes", "parameters", "macs", "tolerance"),
    [
        ({"model": "vit"}, 64, 200, 2_756_744, 189_522_816, 0),
        ({"model": "vit", "spt": True}, 64, 200, 2_906_120, 198_960_000, 0.02),  # the copies are never made: fewer MACs
        ({"model": "vit", "lsa": True}, 64, 200, 2_756_852, 189_522_816, 0),
        ({"model": "vit", **SL}, 64, 200, 2_906_228, 198_960_000, 0.02),
        ({"model": "vit"}, 32, 100, 2_709_796, 187_716_864, 0.001),
        ({"model": "vit", **SL}, 32, 100, 2_747_248, 190_076_160, 0.02),
        ({"model": "cait"}, 64, 200, 9_084_936, 597_501_440, 0),
        ({"model": "cait", **SL}, 64, 200, 9_234_416, 606_938_624, 0.02),
        ({"model": "t2t"}, 64, 200, 6_675_902 - 16_640 - 1_152, 636_346_368, 0),  # less fixed positions, an unused norm
        ({"model": "t2t", **SL}, 64, 200, 6_696_904 - 16_640 - 1_152, 657_580_032, 0),
        ({"model": "t2t"}, 32, 100, 6_525_850 - 16_640 - 1_152, 457_204_224, 0.001),
        ({"model": "pit"}, 64, 200, 7_049_192, 275_346_048, 0.05),
        ({"model": "pit", **SL}, 64, 200, 7_068_164, 280_064_640, 0.05),
        ({"model": "pit", **SL, "spt_pooling": True}, 64, 200, 8_732_804, 322_366_080, 0.05),
        ({"model": "swin"}, 64, 200, 7_149_794, 241_904_640, 0.05),
        ({"model": "swin", **SL}, 64, 200, 7_168_604, 246_623_232, 0.05),
        ({"model": "swin", **SL, "spt_pooling": True}, 64, 200, 8_652_956, 284_371_968, 0.05),
        ({"model": "deit", "patch_size": 16}, 224, 100, 5_543_716, 1_253_510_400, 0),
        (
            {"model": "pit", "patch_size": 16, "stride": 8, "head_width": 32, "mlp_ratio": 4.0},
            224,
            100,
            4_615_972,
            698_829_056,
            0,
        ),
        ({"model": "pvt"}, 224, 100, 12_767_588, 1_932_450_816, 0),
        ({"model": "pvt_v2"}, 224, 100, 3_435_460, 565_835_264, 0),
        ({"model": "convit", "patch_size": 16}, 224, 100, 5_536_812, 1_252_187_520, 0),
        ({"model": "cvt"}, 224, 100, 19_650_980, 4_565_743_616, 0),
        ({"model": "resnet"}, 224, 100, 11_227_812, 1_813_612_544, 0),
        ({"model": "resnet_cifar"}, 64, 200, 868_120, 503_001_600, 0),
        ({"model": "resnet_cifar"}, 32, 100, 861_620, 125_753_600, 0),
        ({"model": "cct"}, 32, 10, 3_760_139, None, 0),
        ({"model": "efficientnet"}, 64, 200, 4_263_748, 123_900_000, 0.05),  # MACs of Lee et al., table 2
        ({"model": "resnet", "variant": "50"}, 224, 1000, 25_557_032, 4_089_184_256, 0),
        ({"model": "resnet", "variant": "wide_50_2"}, 224, 1000, 68_883_240, 11_398_021_120, 0),
    ],
    ids=str,
)
def test_sizes_are_those_of_the_papers(settings, size, classes, parameters, macs, tolerance):
    network_settings = networks.models()[settings["model"]](**settings)
    arguments = models.arguments(network_settings, image_shape=(size, size, 3), classes=classes)
    with torch.device("meta"):
        network = models.build(network_settings.model, arguments).eval()
        counted = sum(parameter.numel() for parameter in network.parameters())
        assert counted == pytest.approx(parameters, rel=tolerance, abs=0)
        assert macs is None or cost.macs(network, (size, size, 3)) == pytest.approx(macs, rel=tolerance, abs=0)


# ---- add-ons ----


@pytest.mark.parametrize("name", ["vit", "t2t", "cait", "pit", "swin"])
def test_an_add_on_that_is_off_changes_nothing(name):
    off = {"spt": False, "lsa": False, "temperature": 1.0}
    assert same_state(build(name), build(name, **off))


def test_swin_and_pit_without_add_ons_are_timms():
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 2, "num_classes": 5, "mlp_ratio": 2.0, "drop_path_rate": 0.0}
    theirs = timm.models.SwinTransformer(**arguments, embed_dim=12, depths=(1, 2, 1), num_heads=(1, 2, 2), window_size=4).eval()
    assert torch.equal(theirs(pictures()), build("swin").eval()(pictures()))
    torch.manual_seed(0)
    theirs = timm.models.PoolingVisionTransformer(
        **arguments, stride=2, base_dims=[8] * 3, depth=[1, 2, 1], heads=[1, 2, 2]
    ).eval()
    assert torch.equal(theirs(pictures()), build("pit").eval()(pictures()))


@pytest.mark.parametrize("name", ["pit", "swin"])
def test_local_attention_adds_one_temperature_a_head_to_the_same_weights(name):
    plain, local = build(name), build(name, lsa=True)
    weights = [sum(p.numel() for p in network.parameters()) for network in (plain, local)]
    heads = sum(depth * heads for depth, heads in zip([1, 2, 1], [1, 2, 2], strict=True))
    assert weights[1] - weights[0] == heads
    assert torch.equal(plain.head.weight if name == "pit" else plain.head.fc.weight, local.get_classifier().weight)


@given(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9), st.integers(0, 3), st.sampled_from(sorted(DIRECTIONS)))
def test_a_shift_is_a_shift(channels, height, width, pixels, directions):
    images = torch.randn(2, channels, height, width)
    copies = shifted(images, pixels, directions).split(channels, dim=1)
    assert torch.equal(copies[0], images)
    for copied, (down, right) in zip(copies[1:], DIRECTIONS[directions], strict=True):
        expected = torch.zeros_like(images)
        for y in range(height):
            for x in range(width):
                row, column = y + down * pixels, x + right * pixels
                if 0 <= row < height and 0 <= column < width:
                    expected[:, :, y, x] = images[:, :, row, column]
        assert torch.equal(copied, expected)


@given(
    patch=st.integers(1, 5),
    directions=st.sampled_from(sorted(DIRECTIONS)),
    ratio=st.floats(0.05, 1.0),
    channels=st.integers(1, 3),
    offset=st.floats(-3, 3),
)
def test_shifted_patches_without_copies_equal_the_plain_formula(patch, directions, ratio, channels, offset):
    torch.manual_seed(patch)
    module = ShiftedPatchEmbedding(patch, channels, 7, directions=directions, ratio=ratio)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    images = torch.randn(2, channels, 3 * patch, 2 * patch, requires_grad=True)
    tokens = module(images + offset)
    plain = module.projection(module.inputs(images + offset))
    torch.testing.assert_close(tokens, plain, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(each.square().sum(), [*module.parameters(), images]) for each in (tokens, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_patches_are_cut_row_by_row_with_channels_innermost():
    images = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    cut = patches(images, 2)
    assert cut.shape == (1, 6, 8)
    assert cut[0, 1].tolist() == [images[0, c, y, x].item() for y in (0, 1) for x in (2, 3) for c in (0, 1)]


@pytest.mark.parametrize("lsa", [False, True, "temperature", "mask"])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 4.0])
def test_fused_attention_equals_the_plain_formula(lsa, temperature):
    torch.manual_seed(0)
    attention, tokens = Attention(24, 3, locality=Locality.of(lsa, temperature)), torch.randn(2, 7, 24)
    weights = attention.weights(tokens)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 7), atol=1e-6)
    assert (weights.diagonal(dim1=-2, dim2=-1) == 0).all() == (lsa in (True, "mask"))
    query, key, value = attention.query_key_value(tokens)
    scores = query @ key.transpose(-2, -1) / (temperature * 8**0.5)
    if lsa in (True, "mask"):
        scores.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    torch.testing.assert_close(weights, scores.softmax(-1), rtol=1e-5, atol=1e-6)
    expected = attention.projection((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lsa", "learned"), [(True, True), ("temperature", True), ("mask", False), (False, False)])
def test_the_temperature_is_learned_one_per_head_in_the_forms_that_learn_it(lsa, learned):
    attention = Attention(24, 3, locality=Locality.of(lsa, 2.0))
    attention(torch.randn(2, 5, 24)).square().sum().backward()
    assert ("scale" in dict(attention.named_parameters())) == learned
    assert torch.allclose(attention.scale, torch.tensor(8**-0.5 / 2))
    assert not learned or (attention.scale.grad.abs() > 0).all()


def test_a_single_token_attends_to_itself_even_when_masked():
    attention, token = Attention(24, 3, locality=Locality.of(True)), torch.randn(2, 1, 24)
    assert attention(token).isfinite().all()


@given(st.sets(st.sampled_from(["query", "key", "value"]), min_size=1), st.integers(1, 6))
def test_latent_projections_have_the_rank_asked_for(latent, rank):
    made = LatentProjections(12, latent, rank)
    matrices = made(torch.eye(12)[None])[0].split(12, dim=1)
    for part, matrix in zip(["query", "key", "value"], matrices, strict=True):
        assert torch.linalg.matrix_rank(matrix.detach().double(), rtol=1e-5) == (rank if part in latent else 12)


@pytest.mark.parametrize("embedding", [PatchEmbedding, ShiftedPatchEmbedding])
def test_a_whitened_embedding_has_uncorrelated_outputs_of_variance_one(embedding):
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(256, 3, 34, 34), 3, 1)  # neighbours are alike, as in pictures
    module = embedding(2, 3, 10)
    whiten(module, images, epsilon=0)
    nn.init.zeros_(module.projection.bias)
    outputs = module(images).flatten(0, 1).detach()
    torch.testing.assert_close(torch.cov(outputs.T), torch.eye(10), rtol=0, atol=2e-3)


def test_a_network_takes_whitening_from_the_pictures_only_where_asked_for():
    def fitted(name, **changes):
        network = build(name, **changes)
        before = copy.deepcopy(network.state_dict())
        models.fit_to_pictures(network, lambda count: torch.randn(count // 8, 3, 32, 32))
        return {key for key, weight in network.state_dict().items() if not torch.equal(weight, before[key])}

    assert fitted("vit", whitening=True) == {"patch_embed.projection.weight"}
    assert fitted("vit") == fitted("resnet_cifar") == set()


def test_class_tokens_are_concatenated_for_the_head():
    network = build("three_tokens")
    assert network.head.in_features == 3 * 24 and network.cls_token.shape == (1, 3, 24)


def test_fixed_positions_are_all_different_and_no_parameters():
    network = build("three_tokens")
    assert "pos_embed" not in network.state_dict()
    positions = network.pos_embed[0, 3:]
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 1e-3 and not network.pos_embed[0, :3].any()


def test_maps_are_the_tokens_in_their_places():
    network = VisionTransformer(img_size=[8, 12], patch_size=2, in_chans=1, embed_dim=4, depth=1, num_heads=1).eval()
    network.blocks[0] = nn.Identity()
    network.pos_embed.data.zero_()
    images = torch.randn(1, 1, 8, 12)
    (maps,) = network.forward_intermediates(images, indices=[0])[1]
    assert torch.equal(maps[0, :, 1, 2], network.patch_embed(images)[0, 6 * 1 + 2])


def test_dropout_keeps_the_mean_and_is_off_in_evaluation():
    drop, tokens = Dropout(0.3), torch.ones(200, 10, 10)
    assert drop(tokens).mean() == pytest.approx(1, abs=0.02)
    assert (drop(tokens) == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(drop.eval()(tokens), tokens)


def test_the_rate_of_stochastic_depth_is_the_same_in_all_blocks_or_rises():
    rates = {
        schedule: [block.drop_path.rate for block in build("vit", drop_path=0.2, drop_path_schedule=schedule).blocks]
        for schedule in ("constant", "linear")
    }
    assert rates["constant"] == [0.2] * 3 and rates["linear"] == pytest.approx([0, 0.1, 0.2])


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation():
    drop, branch = DropPath(0.3), torch.ones(20000, 1, 1)
    assert abs(drop(branch).mean() - 1) < 0.03
    assert drop(branch).unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(drop.eval()(branch), branch)


# ---- what a person can set wrongly ----


def test_few_tokens_are_warned_of():
    with pytest.warns(UserWarning, match="patch_size 4 leaves 4 tokens of a picture of 8 px"):
        models.arguments(SL_VIT.model_copy(update={"patch_size": 4}), image_shape=[8, 8, 1], classes=2)
    with pytest.warns(UserWarning, match="model t2t leaves 4 tokens of a picture of 4 px"):
        models.arguments(networks.T2t(model="t2t"), image_shape=[4, 4, 1], classes=2)


MISFITS = [
    ({"model": "vit", "patch_size": 5}, (32, 32), "patch_size 5 does not divide data.image_size 32; 4 or 8 would"),
    ({"model": "vit", "patch_size": 8}, (48, 36), "patch_size 8 does not divide data.image_size 48 x 36; 6 or 12 would"),
    (
        {"model": "vit", "patch_size": 2, "spt": True, "spt_ratio": 0.25},
        (8, 8),
        "spt_ratio 0.25 of patch_size 2 shifts by no pixel; patch_size 4 w",
    ),
    (
        {"model": "pit", "patch_size": 1, "spt": True},
        (8, 8),
        "spt_ratio 0.5 of patch_size 1 shifts by no pixel; patch_size 2 w",
    ),
    ({"model": "vit", "patch_size": 4, "heads": 7}, (32, 32), "heads 7 does not divide width 192; 6 or 8 would"),
    ({"model": "vit", "width": 6, "heads": 3, "position": "sincos"}, (32, 32), "width 6 is no multiple of 4, "),
    ({"model": "vit", "mla": ["key"], "mla_rank": 200}, (32, 32), "mla_rank 200 saves nothing at width 192; 64 would"),
    (
        {"model": "hybrid", "patch_size": 3, "stem_stride": 2},
        (32, 32),
        "patch_size 3 does not divide the stem's map of 16; 2 or 4 would",
    ),
    ({"model": "swin", "window": 5}, (32, 32), "window 5 is larger than the last map, 4 tokens a side; up to 4 would fit"),
    ({"model": "swin", "heads": [3, 7, 12]}, (32, 32), "heads 7 does not divide width 192; 6 or 8 would (stage 2)"),
    ({"model": "convit"}, (32, 64), "model convit needs square pictures, not 32 x 64; 32 x 32 would do"),
    (
        {"model": "pvt_v2", "stride": 4},
        (16, 16),
        "stride 4 leaves less than 8 tokens a side of data.image_size 16; 2 would fit",
    ),
    ({"model": "resnet_cifar", "depth": 21}, (32, 32), "depth 21 is not 6n + 2; 20 or 26 would be"),
]


@pytest.mark.parametrize(("settings", "size", "line"), MISFITS, ids=str)
def test_a_misfit_is_one_line_with_what_would_fit(settings, size, line):
    network = networks.models()[settings["model"]](**settings)
    mistakes = network.misfits(*size)
    assert len(mistakes) == 1 and mistakes[0].startswith(line)
    with pytest.raises(UserError, match="^" + network.model):
        models.arguments(network, image_shape=[*size, 3], classes=2)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"model": "vit", "spt_ratio": 0.25}, "spt_ratio has no effect without spt"),
        ({"model": "swin", "spt_pooling": True}, "spt_pooling has no effect without spt"),
        ({"model": "vit", "stem_stride": 2}, "stem_stride has no effect without a stem"),
        ({"model": "vit", "pool": "avg", "class_tokens": 2}, "class_tokens 2 has no effect with pool avg"),
        ({"model": "hybrid", "whitening": True}, "whitening starts the patch embedding from pixels"),
        ({"model": "pit", "heads": [1, 2]}, "depths has 3 stages and heads 2"),
        ({"model": "vit", "lsa": "L"}, "input should be False, True, 'temperature' or 'mask'"),
    ],
)
def test_settings_without_effect_are_refused_in_one_line(params, settings, line):
    params["students"]["vit"] = settings
    with pytest.raises(UserError) as error:
        config.parse(params)
    (found,) = str(error.value).splitlines()
    assert line in found and found.startswith("params.yaml: students.vit")


@given(st.integers(8, 224), st.sampled_from(sorted(networks.models())))
def test_defaults_fit_every_square_picture(size, model):
    network = networks.models()[model](model=model)
    assert network.misfits(size, size) == []


# ---- timm ----


def test_timm_lists_and_makes_every_network():
    listed = set(timm.list_models("espalier_*"))
    assert listed == {f"espalier_{name}" for name in {*models.NETWORKS, *registry.PRESETS}}
    small = {"img_size": 16, "patch_size": 4, "num_classes": 3, "embed_dim": 24, "depth": 2, "num_heads": 3}
    network = timm.create_model("espalier_sl_vit", **small)
    assert network.blocks[0].attention.locality == Locality.of(True) and network.pretrained_cfg is not None
    assert isinstance(network.patch_embed, ShiftedPatchEmbedding)
    assert isinstance(timm.create_model("espalier_resnet20_cifar"), CifarResNet)
    assert isinstance(timm.create_model("espalier_pvt_v2", in_chans=1), zoo.PvtV2)


def test_whole_settings_build_what_the_card_shows():
    arguments = models.arguments(SL_VIT, image_shape=CARD["image_shape"], classes=3)
    assert models.build("vit", arguments)(torch.randn(2, 3, 8, 8)).shape == (2, 3)
