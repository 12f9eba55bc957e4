"""Laws of the recipe's parts: each does what its formula says, and none of them is lost on resuming."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import Guidance, UserError, Vit
from pipeline.durations import Timetable
from pipeline.training import engine, guidance, optim, selection
from pipeline.training.checkpoint import Model
from tests.conftest import RESNET, SL_VIT, job, numbers, recipe, teacher
from tests.test_training import Interrupted, fit, same

FULL = {
    "ema_decay": 0.9,
    "result": "best_ema",
    "gradient_clip": 1.0,
    "accumulate": 2,
    "sharpness_radius": 0.05,
    "schedule": "linear",
}
PLAIN = Vit(model="vit", patch_size=2, width=16, depth=2, heads=2)  # nothing random, no BatchNorm


@pytest.mark.parametrize("optimizer", list(optim.OPTIMIZERS))
def test_every_optimizer_learns_and_goes_on(optimizer, tmp_path):
    rate = {"sgd": 0.05, "lion": 1e-3}.get(optimizer, 3e-3)
    made = job(PLAIN, recipe(optimizer=optimizer, learning_rate=rate, duration="8 epochs"))
    unbroken = fit(made, tmp_path / "unbroken")
    assert unbroken.history[-1]["train_loss"] < unbroken.history[0]["train_loss"]
    with pytest.raises(Interrupted):
        fit(made, tmp_path / "resumed", stop_after=3)
    assert same(unbroken, fit(made, tmp_path / "resumed"))


def test_a_full_recipe_resumes_bitwise_guided_or_not(tmp_path):
    made = job(RESNET, recipe(**FULL, duration="4 epochs"), guidance=Guidance(beta=1.0, schedule="constant"), teacher=teacher())
    unbroken = fit(made, tmp_path / "unbroken")
    for stop in (1, 3):
        with pytest.raises(Interrupted):
            fit(made, tmp_path / "resumed", stop_after=stop)
    assert same(unbroken, fit(made, tmp_path / "resumed"))


def test_accumulated_parts_are_the_whole_batch(tmp_path):
    whole = fit(job(PLAIN, recipe()), tmp_path / "1")
    parts = fit(job(PLAIN, recipe(accumulate=4)), tmp_path / "4")
    for mine, other in zip(numbers(whole.history), numbers(parts.history), strict=True):
        assert mine == pytest.approx(other, rel=1e-4)


def updated(**changes):
    """A linear network after one step on fixed data, its gradients function, and the update that was done."""
    torch.manual_seed(0)
    network, inputs, labels = nn.Linear(5, 3), torch.randn(8, 5), torch.randint(0, 3, (8,))
    start = copy.deepcopy(network)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update = engine.Update(torch.optim.SGD(network.parameters(), lr=1.0), scaler, None, network, **changes)

    def gradients():
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        return loss.detach()

    update(gradients)
    step = [old.detach() - new.detach() for old, new in zip(start.parameters(), network.parameters(), strict=True)]
    return start, step, lambda at: torch.autograd.grad(F.cross_entropy(at(inputs), labels), list(at.parameters()))


def test_clipping_keeps_the_direction_and_bounds_the_norm():
    _, step, _ = updated(gradient_clip=0.01)
    _, free, _ = updated()
    length = nn.utils.get_total_norm(free)
    assert nn.utils.get_total_norm(step) == pytest.approx(0.01, rel=1e-3)
    assert all(
        torch.allclose(own, other * (0.01 / length), rtol=1e-3, atol=1e-7) for own, other in zip(step, free, strict=True)
    )


def test_sharpness_aware_steps_take_the_gradient_uphill():
    start, step, gradients = updated(sharpness_radius=0.1)
    uphill, slopes = copy.deepcopy(start), gradients(start)
    with torch.no_grad():
        for parameter, slope in zip(uphill.parameters(), slopes, strict=True):
            parameter += 0.1 * slope / nn.utils.get_total_norm(slopes)
    assert all(torch.allclose(own, other, atol=1e-6) for own, other in zip(step, gradients(uphill), strict=True))


def test_the_average_of_the_weights_is_that_of_the_formula(tmp_path, monkeypatch):
    seen, original = [], engine.Update.__call__

    def recorded(update, gradients):
        result = original(update, gradients)
        seen.append(update.network.head.weight.detach().clone())
        return result

    monkeypatch.setattr(engine.Update, "__call__", recorded)
    trained = fit(job(PLAIN, recipe(ema_decay=0.8, result="ema")), tmp_path)
    average = seen[0]
    for weight in seen[1:]:
        average = 0.8 * average + 0.2 * weight
    assert torch.allclose(trained.weights["head.weight"], average, atol=1e-6)
    assert trained.history[-1]["val_ema_loss"] != trained.history[-1]["val_loss"]


def rows(*accuracies):
    return [{"epoch": n, "val_accuracy": a, "val_loss": 1.0} for n, a in enumerate(accuracies, 1)]


def test_the_result_is_the_first_of_the_best_epochs():
    history = rows(0.5, 0.7, 0.6, 0.7)
    assert selection.chosen(history, recipe(result="best"))["epoch"] == 2
    assert selection.chosen(history, recipe(result="last"))["epoch"] == 4
    assert [selection.is_best(history[:n], ema=False) for n in (1, 2, 3, 4)] == [True, True, False, False]


def test_the_weights_of_the_best_epoch_are_kept(tmp_path):
    made = job(training=recipe(result="best", duration="6 epochs", learning_rate=0.05))
    trained = fit(made, tmp_path)
    chosen = selection.chosen(trained.history, made.training)
    scale = engine.Pixels.of([0.5] * 3, [0.25] * 3, torch.device("cpu"))
    logits = Model(made.config, trained.weights).network()(scale(torch.from_numpy(made.validation.pixels)))
    labels = torch.from_numpy(made.validation.labels)
    assert chosen["val_accuracy"] == max(row["val_accuracy"] for row in trained.history)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(chosen["val_accuracy"])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(chosen["val_loss"], rel=1e-5)


def test_patience_ends_a_training_that_no_longer_gets_better(tmp_path):
    over = recipe(duration="10 epochs", patience="2 epochs")
    times = Timetable(steps_per_epoch=3, total_steps=30, batch_size=16)
    assert not selection.is_over(rows(0.5, 0.4), over, times) and selection.is_over(rows(0.5, 0.4, 0.5), over, times)
    assert not selection.is_over(rows(0.5, 0.4, 0.6), over, times)
    stuck = fit(job(training=recipe(duration="30 epochs", learning_rate=1e-9, patience="3 epochs")), tmp_path)
    assert len(stuck.history) < 30


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"result": "ema"}, "result ema needs ema_decay"),
        ({"sharpness_radius": 0.1, "precision": "float16"}, "sharpness_radius does not go with precision float16"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        recipe(**changes)


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="precision float16 needs a GPU"):
        fit(job(training=recipe(precision="float16")), tmp_path)


def test_the_rate_grows_with_the_batch_only_when_asked_to():
    plain, scaled = recipe(), recipe(reference_batch_size=4)
    times = Timetable(steps_per_epoch=2, total_steps=6, batch_size=16)
    at = [optim.learning_rate_at(3, setting, times) for setting in (plain, scaled)]
    assert at[1] == pytest.approx(at[0] * 16 / 4)


@pytest.mark.parametrize("loss", list(guidance.LOSSES))
@pytest.mark.parametrize("normalise", [False, True])
def test_guidance_is_least_for_equal_maps(loss, normalise):
    torch.manual_seed(0)
    maps = [torch.randn(3, 4, 6, 6), torch.randn(3, 8, 2, 2)]
    others = [torch.randn_like(own) for own in maps]
    measure = {"loss": loss, "normalise": normalise}
    assert guidance.guidance_loss(maps, maps, **measure) == pytest.approx(0, abs=1e-6)
    assert guidance.guidance_loss(maps, others, **measure) > 0.01


def test_cosine_and_normalised_guidance_do_not_see_scale():
    maps, others = [torch.randn(3, 4, 6, 6)], [torch.randn(3, 4, 6, 6)]
    larger = [10 * own for own in maps]
    for measure in ({"loss": "cosine"}, {"loss": "attention"}, {"normalise": True}):
        assert guidance.guidance_loss(larger, others, **measure) == pytest.approx(
            guidance.guidance_loss(maps, others, **measure).item(), rel=1e-3
        )


@pytest.mark.parametrize(
    "changes", [{"projection_kernel": 3}, {"loss": "cosine"}, {"teacher_layers": [2], "student_layers": [2]}]
)
def test_every_kind_of_guidance_trains(changes, tmp_path):
    setting = Guidance(beta=1.0, schedule="constant", **changes)
    history = fit(job(guidance=setting, teacher=teacher()), tmp_path).history
    assert history[-1]["guidance_loss"] < history[0]["guidance_loss"]


def test_teacher_layers_that_are_not_there_are_one_line(tmp_path):
    setting = Guidance(beta=1.0, schedule="constant", teacher_layers=[0, 1, 9])
    with pytest.raises(UserError, match=r"guidance teacher_layers \[0, 1, 9\]: the teacher has no layer of that index"):
        fit(job(guidance=setting, teacher=teacher()), tmp_path)


def test_the_slope_of_a_line_is_its_slope_and_needs_two_windows():
    losses = [10 - 0.5 * epoch for epoch in range(30)]
    assert guidance.slope(losses, window=5) == pytest.approx(-0.5)
    assert guidance.slope(losses[:9], window=5) == -float("inf") and guidance.slope(losses[:10], window=5) > -1


def test_adaptive_guidance_ends_where_the_loss_gets_flat_and_stays_ended():
    times = Timetable(steps_per_epoch=10, total_steps=2000, batch_size=1)
    setting = Guidance(beta=1.0, schedule="adaptive", window="5 %", stop_slope=-6.0)
    falling = [{"guidance_loss": 5 - 0.05 * epoch, "beta": 1.0} for epoch in range(60)]
    flat = [{"guidance_loss": 2.0, "beta": 1.0} for _ in range(20)]
    assert guidance.goes_on(setting, falling, times)  # -0.05 an epoch is -10 over the whole
    assert not guidance.goes_on(setting, falling + flat, times)
    assert not guidance.goes_on(setting, [*falling, {"guidance_loss": 0.0, "beta": 0.0}], times)


def test_adaptive_guidance_goes_on_as_it_would_have(tmp_path):
    setting = Guidance(beta=1.0, schedule="adaptive", window="20 %", stop_slope=-0.5)
    steady = SL_VIT.model_copy(update={"dropout": 0.0})  # whose guidance loss gets flat in ten epochs
    made = job(steady, training=recipe(duration="10 epochs", learning_rate=0.02), guidance=setting, teacher=teacher())
    unbroken = fit(made, tmp_path / "unbroken")
    betas = [row["beta"] for row in unbroken.history]
    assert betas[:4] == [1.0] * 4 and betas[-1] == 0.0 and betas == sorted(betas, reverse=True)
    for stop in (2, betas.index(0.0) + 1):
        with pytest.raises(Interrupted):
            fit(made, tmp_path / "resumed", stop_after=stop)
    assert same(unbroken, fit(made, tmp_path / "resumed"))
