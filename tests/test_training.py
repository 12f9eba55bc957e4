"""Laws of a training: resumed equals unbroken, unguided equals guided with beta 0, the teacher never changes."""

import dataclasses
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import distributed, metrics
from pipeline.config import Augmentation, Guidance, UserError
from pipeline.data import loading
from pipeline.durations import Timetable
from pipeline.training import engine, guidance, loop, optim
from pipeline.training.checkpoint import Model, State
from tests.conftest import RESNET, SL_VIT, cluster, job, numbers, recipe, teacher

CONSTANT = Guidance(beta=2.5, schedule="constant")
EARLY = Guidance(beta=2.5, schedule="cosine", end="50 %")


class Interrupted(Exception):
    pass


def fit(made: loop.Job, scratch: Path, *, stop_after: int | None = None, **changes: Any) -> distributed.Trained:
    """A training in this process, perhaps killed right after an epoch was reported."""

    def on_epoch(row):
        if row["epoch"] == stop_after:
            raise Interrupted

    where = cluster(scratch=str(scratch), **changes)
    return distributed.fit(made, where, identity="run", listener=distributed.Listener(epoch=on_epoch))


def fresh_state(made: loop.Job) -> State:
    cpu = torch.device("cpu")
    return loop._fresh(made, cpu, loading.open_source(made.train, cpu))


def same(first: distributed.Trained, second: distributed.Trained) -> bool:
    """Bitwise equal weights and equal numbers."""
    return equal_weights(first, second) and numbers(first.history) == numbers(second.history)


def equal_weights(first: distributed.Trained, second: distributed.Trained) -> bool:
    return first.weights.keys() == second.weights.keys() and all(
        torch.equal(first.weights[name], second.weights[name]) for name in first.weights
    )


@pytest.mark.parametrize(
    "made",
    [job(), job(RESNET), job(guidance=CONSTANT, teacher=teacher()), job(guidance=EARLY, teacher=teacher())],
    ids=["vit", "resnet", "constant guidance", "early guidance"],
)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumed_equals_unbroken(made, stop_after, tmp_path):
    unbroken = fit(made, tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fit(made, tmp_path / "resumed", stop_after=stop_after)
    assert same(unbroken, fit(made, tmp_path / "resumed"))


def test_a_training_learns(tmp_path):
    trained = fit(job(training=recipe(duration="12 epochs", warmup="2 epochs")), tmp_path)
    assert trained.history[-1]["val_accuracy"] > 0.8 > trained.history[0]["val_accuracy"]


def test_a_finished_training_is_not_trained_again(tmp_path):
    first = fit(job(), tmp_path)
    assert same(first, fit(job(), tmp_path, stop_after=1))  # an epoch would raise


def test_two_who_want_the_same_run_train_it_once(tmp_path, caplog):
    told = []

    def train(_):
        listener = distributed.Listener(epoch=lambda row: told.append(row["epoch"]))
        return distributed.fit(job(), cluster(scratch=str(tmp_path)), identity="run", listener=listener)

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(train, range(2))
    assert told == [1, 2, 3] and same(first, second)
    assert "another process trains run run; waiting for it" in caplog.text


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    unbroken = fit(job(), tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fit(job(), tmp_path / "resumed", stop_after=2)
    newest = sorted((tmp_path / "resumed").rglob("epoch-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert same(unbroken, fit(job(), tmp_path / "resumed"))


def test_checkpoints_are_as_far_apart_as_asked(tmp_path):
    with pytest.raises(Interrupted):
        fit(job(), tmp_path, stop_after=2, checkpoint_interval="1000 seconds")
    assert not list(tmp_path.rglob("epoch-*.pt"))


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^the place of the checkpoints, .+/file/run/checkpoints .+ cannot be used from"):
        fit(job(), tmp_path, checkpoints=str(tmp_path / "file"))
    with pytest.raises(UserError, match="^cluster.checkpoints 'nowhere://x/run/checkpoints'"):
        fit(job(), tmp_path, checkpoints="nowhere://x")


def test_unguided_equals_guided_with_beta_zero(tmp_path):
    nothing = Guidance(beta=0.0, schedule="constant")
    unguided = fit(job(), tmp_path / "unguided")
    assert same(unguided, fit(job(guidance=nothing, teacher=teacher()), tmp_path / "zero"))
    assert not same(unguided, fit(job(guidance=CONSTANT, teacher=teacher()), tmp_path / "guided"))


def test_the_teacher_never_changes_and_is_not_run_after_guidance(tmp_path, monkeypatch):
    model = teacher()
    before, calls = model.digest, []
    forward = guidance.Teacher.forward
    monkeypatch.setattr(guidance.Teacher, "forward", lambda self, images: calls.append(len(images)) or forward(self, images))
    trained = fit(job(guidance=EARLY, teacher=model), tmp_path)
    assert model.digest == before
    steps = 70 // 16
    assert len([count for count in calls if count == 16]) == 2 * steps  # half of 3 epochs, rounded up
    assert [row["guidance_loss"] > 0 for row in trained.history] == [True, True, False]


TWO_HEADS = SL_VIT.model_copy(update={"distillation_token": True})
DISTILLED = Guidance(beta=0.0, schedule="constant", distillation="soft")


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation_of_no_weight_changes_nothing_and_of_some_weight_does(kind, tmp_path):
    unguided = fit(job(), tmp_path / "unguided")
    weights = {
        weight: DISTILLED.model_copy(update={"distillation": kind, "distillation_weight": weight}) for weight in (0.0, 0.5)
    }
    nothing, something = (
        fit(job(guidance=setting, teacher=teacher()), tmp_path / str(weight)) for weight, setting in weights.items()
    )
    assert equal_weights(unguided, nothing) and not equal_weights(unguided, something)
    assert all(row["distillation_loss"] > 0 and row["guidance_loss"] == 0 for row in something.history)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_the_divergence_from_the_teacher(temperature):
    setting = DISTILLED.model_copy(update={"temperature": temperature})
    student, other = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    own, theirs = ((logits / temperature).softmax(1) for logits in (student, other))
    by_hand = (theirs * (theirs / own).log()).sum(1).mean() * temperature**2
    torch.testing.assert_close(guidance.distillation_loss(student, other, setting), by_hand)
    assert guidance.distillation_loss(student, student, setting).abs() < 1e-6


def test_hard_distillation_knows_only_the_likeliest_class():
    setting = DISTILLED.model_copy(update={"distillation": "hard"})
    student, truth = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    sharper = truth * 10
    expected = torch.nn.functional.cross_entropy(student, truth.argmax(1))
    assert (
        guidance.distillation_loss(student, truth, setting) == guidance.distillation_loss(student, sharper, setting) == expected
    )


def test_answers_are_learned_to_the_end_and_maps_only_as_long_as_guidance_goes_on(tmp_path):
    both = EARLY.model_copy(update={"distillation": "hard"})
    made = job(TWO_HEADS, guidance=both, teacher=teacher())
    trained = fit(made, tmp_path / "both")
    assert [row["guidance_loss"] > 0 for row in trained.history] == [True, True, False]
    assert all(row["distillation_loss"] > 0 for row in trained.history)
    with pytest.raises(Interrupted):
        fit(made, tmp_path / "again", stop_after=2)
    assert same(trained, fit(made, tmp_path / "again"))


def test_each_head_learns_from_its_own_teacher():
    student = fresh_state(job(TWO_HEADS)).network
    guided = guidance.GuidedStudent(student, torch.nn.ModuleList(), [], distilled=True)
    images = torch.randn(2, 3, 8, 8)
    own, taught, _ = guided.eval()(images)
    own.square().sum().backward()
    assert student.head.weight.grad.any() and student.head_dist.weight.grad is None
    torch.testing.assert_close(student(images), (own + taught) / 2)
    assert torch.equal(*guidance.GuidedStudent(student, torch.nn.ModuleList(), [])(images)[:2])


def test_the_teacher_stays_in_eval_mode():
    held = guidance.Teacher(teacher().network(), (8, 8))
    statistics = {name: buffer.clone() for name, buffer in held.network.named_buffers()}
    guidance.GuidedStudent(held, torch.nn.ModuleList(), []).train()
    held(torch.randn(4, 3, 8, 8))
    assert not any(module.training for module in held.network.modules())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in held.network.named_buffers())
    assert not any(parameter.requires_grad for parameter in held.parameters())


def test_projections_are_trained_and_checkpointed(tmp_path):
    made = job(guidance=CONSTANT, teacher=teacher())
    keeper = distributed.Keeper(str(tmp_path), interval="0 seconds")
    reporter = distributed.LocalReporter(keeper, torch.device("cpu"), distributed.Listener())
    fresh = fresh_state(made).projections.state_dict()
    state = loop.train(made, reporter)
    again = loop.train(made, reporter)  # only restores
    trained = state.projections.state_dict()
    assert all(not torch.equal(fresh[name], trained[name]) for name in fresh)
    assert all(torch.equal(trained[name], value) for name, value in again.projections.state_dict().items())


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 3]])
def test_layers_that_do_not_pair_are_one_line(layers, tmp_path):
    wrong = Guidance(beta=1.0, schedule="constant", student_layers=layers)
    with pytest.raises(UserError, match="guidance student_layers"):
        fit(job(guidance=wrong, teacher=teacher()), tmp_path)


def test_chosen_layers_are_used(tmp_path):
    default, chosen = (Guidance(beta=1.0, schedule="constant", student_layers=which) for which in ([0, 1, 2], [0, 0, 0]))
    assert same(
        fit(job(guidance=Guidance(beta=1.0, schedule="constant"), teacher=teacher()), tmp_path / "1"),
        fit(job(guidance=default, teacher=teacher()), tmp_path / "2"),
    )
    assert not same(
        fit(job(guidance=default, teacher=teacher()), tmp_path / "2"),
        fit(job(guidance=chosen, teacher=teacher()), tmp_path / "3"),
    )


def test_a_teacher_of_another_size_gives_guidance(tmp_path):
    model = teacher()
    larger = {**model.config, "pretrained_cfg": {**model.config["pretrained_cfg"], "input_size": [3, 12, 12]}}
    trained = fit(job(guidance=CONSTANT, teacher=Model(larger, model.weights)), tmp_path)
    assert all(row["guidance_loss"] > 0 for row in trained.history)


def test_a_diverging_training_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"^the training loss is no number from step \d on \(epoch 1, learning rate .+\); a lower .+: none yet$"
    ):
        fit(job(training=recipe(optimizer="sgd", learning_rate=1e30, warmup="0 epochs")), tmp_path)


def test_a_training_that_diverges_later_names_its_newest_checkpoint(tmp_path, monkeypatch):
    step, steps = engine.Objective.__call__, iter(range(12))  # four an epoch

    def bad_from_the_ninth_on(*given):
        bad = float("nan") if next(steps) >= 9 else 0.0
        return tuple(part + bad for part in step(*given))

    monkeypatch.setattr(engine.Objective, "__call__", bad_from_the_ninth_on)
    with pytest.raises(UserError, match=r"from step 9 on \(epoch 3, .+; the newest checkpoint: epoch 2 in .+/run/checkpoints$"):
        fit(job(), tmp_path)


def test_a_disk_that_fills_up_on_the_way_is_one_line_and_the_run_goes_on_later(tmp_path):
    """A process that may write no file of more than 4,096 bytes from its third epoch on."""
    code = f"""
import resource
import torch
from pipeline import distributed
from pipeline.config import UserError
from tests.conftest import cluster, job
torch.set_num_threads({torch.get_num_threads()})
def on_epoch(row):
    if row["epoch"] == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    listener = distributed.Listener(epoch=on_epoch)
    distributed.fit(job(), cluster(scratch={str(tmp_path / "full")!r}), identity="run", listener=listener)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    place = tmp_path / "full/run/checkpoints"
    assert re.fullmatch(rf"no checkpoint of epoch 3 in {place} \(.*File too large.*\); older ones stay\n", done.stdout)
    assert sorted(path.name for path in place.iterdir()) == ["epoch-00001.pt", "epoch-00002.pt"]
    assert same(fit(job(), tmp_path / "unbroken"), fit(job(), tmp_path / "full"))


def test_a_batch_that_is_too_large_is_one_line(tmp_path):
    with pytest.raises(UserError, match="batch_size 71 exceeds the 70 training pictures"):
        fit(job(training=recipe(batch_size=71)), tmp_path)


def test_whitening_draws_its_pictures_by_the_seed():
    made = job(SL_VIT.model_copy(update={"spt": False, "whitening": True}))
    weights = [fresh_state(dataclasses.replace(made, seed=seed)).network.patch_embed.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(weights[0]["projection.weight"], weights[1]["projection.weight"])
    assert not torch.equal(weights[0]["projection.weight"], weights[2]["projection.weight"])


def test_seeds_differ(tmp_path):
    assert not same(fit(job(seed=0), tmp_path / "0"), fit(job(seed=1), tmp_path / "1"))


@given(st.integers(1, 400), st.sampled_from(["constant", "linear", "cosine", "step"]), st.floats(0, 10))
def test_beta_starts_whole_never_rises_and_is_zero_from_its_end(end_step, schedule, beta):
    setting = Guidance(beta=beta, schedule=schedule, end=None if schedule == "constant" else "50 %")
    values = [guidance.beta_at(step, setting, end_step=end_step) for step in range(end_step + 2)]
    assert values[0] == beta and values[end_step:] == [0.0, 0.0]
    assert all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))


def test_decays_have_their_shape():
    linear, cosine = (Guidance(beta=2.0, schedule=name, end="100 %") for name in ("linear", "cosine"))
    assert [guidance.beta_at(step, linear, end_step=4) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert guidance.beta_at(1, cosine, end_step=4) == pytest.approx(1 + math.sqrt(0.5))


FLOORS = st.just(0.0) | st.floats(1e-6, 1)


@given(st.integers(0, 50), st.integers(1, 200), st.floats(1e-6, 10), st.sampled_from(list(optim.SCHEDULES)), FLOORS)
def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_its_floor(warmup, rest, peak, schedule, floor):
    setting = recipe(learning_rate=peak, warmup=f"{warmup} steps", schedule=schedule, floor_fraction=floor)
    times = Timetable(steps_per_epoch=7, total_steps=warmup + rest, batch_size=16)
    rates = [optim.learning_rate_at(step, setting, times) for step in range(warmup + rest)]
    assert rates[warmup] == pytest.approx(peak) == max(rates) and min(rates[warmup:]) >= floor * peak > 0 or floor == 0
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_weight_decay_spares_norms_biases_tokens_and_scales():
    made = job()
    network = fresh_state(made).network
    decayed, spared = optim.parameter_groups([network], weight_decay=0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(p)].split(".")[-1] for p in decayed["params"]} == {"weight"}
    assert {"cls_token", "pos_embed", "scale", "bias", "weight"} == {names[id(p)].split(".")[-1] for p in spared["params"]}
    assert len(names) == len(decayed["params"]) + len(spared["params"])


@given(st.integers(1, 80), st.integers(1, 30), st.integers(1, 4))
def test_an_evaluation_adds_up_over_any_shards(count, batch_size, world):
    from pipeline.data import batches
    from pipeline.data.loading import Resident

    torch.manual_seed(count)
    pixels, labels = torch.randint(0, 256, (count, 2, 2, 1), dtype=torch.uint8), torch.randint(0, 6, (count,))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 6))
    scale = engine.Pixels.of([0.5], [0.25], torch.device("cpu"))

    def counted(rank, of, size):
        shard = batches.evaluation(Resident(pixels, labels), side=2, batch_size=size, rank=rank, world=of)
        return engine.evaluate(network, shard, scale, classes=6, precision=torch.float32)

    whole = metrics.summary(engine.to_counts(counted(0, 1, 1000), 6))
    parts = metrics.summary(engine.to_counts(sum(counted(rank, world, batch_size) for rank in range(world)), 6))
    logits = network(scale(pixels))
    assert whole == pytest.approx(parts, rel=1e-5)
    assert whole["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert whole["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_metrics_by_hand():
    counts = metrics.Counts(
        loss_sum=3.0, top5=4, confusion=np.array([[1, 1], [0, 2]]), bins=np.array([[4.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    )
    assert metrics.summary(counts) == {
        "accuracy": 0.75,
        "top5_accuracy": 1.0,
        "balanced_accuracy": 0.75,
        "loss": 0.75,
        "calibration_error": 0.0,
    }
    assert (
        metrics.mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2))) and metrics.mean_and_spread([1.0])[1] is None
    )
    with pytest.raises(ValueError, match="no picture"):
        metrics.summary(dataclasses.replace(counts, confusion=np.zeros((2, 2))))


def test_stochastic_depth_is_part_of_these_laws():
    assert SL_VIT.drop_path > 0


MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, policy="randaugment", repeats=2)


def test_a_mixed_training_learns_resumes_and_is_guided_alike(tmp_path):
    made = job(training=recipe(augmentation=MIXED, passes_per_epoch=2, image_size=12), guidance=EARLY, teacher=teacher())
    unbroken = fit(made, tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fit(made, tmp_path / "resumed", stop_after=2)
    assert same(unbroken, fit(made, tmp_path / "resumed"))
    assert unbroken.history[-1]["images_seen"] == 3 * (2 * 70 // 16) * 16
    assert unbroken.history[0]["guidance_loss"] > 0 and unbroken.history[-1]["train_loss"] < unbroken.history[0]["train_loss"]


def test_streamed_pictures_train_the_same_network(tmp_path):
    made = job(training=recipe(augmentation=MIXED))
    streamed = distributed.fit(
        made, cluster(scratch=str(tmp_path / "2"), data="streaming"), identity="run", listener=distributed.Listener()
    )
    assert same(fit(made, tmp_path / "1"), streamed)
    assert streamed.history[0]["data"] == "streaming"


@given(st.integers(0, 10**6))
def test_a_mixed_label_is_a_mixture_of_losses_and_a_pure_one_the_same_as_a_class(seed):
    torch.manual_seed(seed)
    objective = engine.Objective(
        model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)),
        teacher=None,
        pixels=engine.Pixels.of([0.5], [0.25], torch.device("cpu")),
        label_smoothing=0.1,
        precision=torch.float32,
    )
    images, first, second = torch.randint(0, 256, (8, 2, 2, 1)), *torch.randint(0, 3, (2, 8))
    kept = float(torch.rand(()))
    one, other = (torch.nn.functional.one_hot(labels, 3).float() for labels in (first, second))
    losses = [objective(images, labels, 0.0)[0] for labels in (first, second)]
    torch.testing.assert_close(objective(images, one, 0.0), objective(images, first, 0.0))
    mixed, sums = objective(images, kept * one + (1 - kept) * other, 0.0)
    torch.testing.assert_close(mixed, kept * losses[0] + (1 - kept) * losses[1])
    torch.testing.assert_close(sums[3], objective(images, first if kept > 0.5 else second, 0.0)[1][3])
