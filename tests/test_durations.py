"""How long something lasts is one thing, whether it is said in epochs, steps, images or percent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline import runs
from pipeline.config import Guidance, UserError
from pipeline.data import batches
from pipeline.durations import Interval, Length, Part, PartOrZero, Timetable, parsed
from tests.conftest import CARD, SL_VIT, job, pictures, recipe, teacher
from tests.test_training import Interrupted, fit, same

STEPS = 70 // 16  # in an epoch of `job`
TIMES = st.builds(Timetable, st.integers(1, 500), st.integers(1, 10**5), st.integers(1, 512))


@given(st.decimals(0, 10**9, places=3), st.sampled_from(["epoch", "epochs", "steps", "image", "%", "hours"]), st.booleans())
def test_a_duration_is_read_exactly_as_it_is_written(number, unit, space):
    assert parsed(f"{number}{' ' * space}{unit}") == (number, unit.removesuffix("s"))


@pytest.mark.parametrize(
    "given", ["", "epochs", "3", 3, 3.5, None, True, "-1 epochs", "1e3 steps", "3 weeks", "nan %", "3 epochs "]
)
@pytest.mark.parametrize("kind", [Length, Part, PartOrZero, Interval])
def test_what_is_no_duration_is_refused(kind, given):
    with pytest.raises(ValidationError, match="number with one of the units"):
        TypeAdapter(kind).validate_python(given)


def test_each_kind_has_its_units():
    known = {Length: "3 epochs", Part: "10 %", PartOrZero: "0 steps", Interval: "5 minutes"}
    refused = {Length: "10 %", Part: "0 steps", PartOrZero: "101 %", Interval: "3 images"}
    for kind, text in known.items():
        assert TypeAdapter(kind).validate_python(text) == text
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(refused[kind])


@given(TIMES, st.integers(1, 200))
def test_units_agree(times, steps):
    images = times.steps(f"{steps * times.batch_size} images")
    assert times.steps(f"{steps} steps") == images == steps
    assert times.steps(f"{steps} epochs") == steps * times.steps_per_epoch
    assert times.steps("100 %") == times.total_steps == times.steps(f"{times.total_steps} steps")


@given(TIMES, st.decimals("0.001", 100, places=3))
def test_a_part_is_never_less_than_what_was_asked_for_and_less_than_a_step_more(times, percent):
    assert 0 <= times.steps(f"{percent} %") - float(percent) / 100 * times.total_steps < 1 + 1e-6


@given(TIMES)
def test_the_epochs_of_a_training_hold_its_steps(times):
    assert sum(times.steps_in(epoch) for epoch in range(times.epochs)) == times.total_steps
    assert [times.steps_in(epoch) for epoch in range(times.epochs - 1)] == [times.steps_per_epoch] * (times.epochs - 1)
    assert times.steps_after(times.epochs) == times.total_steps and times.steps_in(times.epochs - 1) > 0


@given(st.integers(16, 300), st.integers(1, 5000), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_a_training_shows_the_fewest_batches_that_hold_its_images(count, images, passes, repeats):
    made = recipe(duration=f"{images} images", passes_per_epoch=passes)
    made = made.model_copy(update={"augmentation": made.augmentation.model_copy(update={"repeats": repeats})})
    epochs = batches.timetable(count, made).epochs
    seen = np.concatenate([batches.plan(count, made, seed=0, epoch=epoch) for epoch in range(epochs)]).size
    assert seen - made.batch_size < images <= seen


def test_the_last_epoch_begins_as_a_whole_one_does():
    whole, cut = recipe(duration="3 epochs"), recipe(duration=f"{2 * STEPS + 1} steps")
    plans = [batches.plan(70, made, seed=0, epoch=2) for made in (whole, cut)]
    assert len(plans[0]) == STEPS and np.array_equal(plans[0][:1], plans[1])


def test_the_same_training_in_other_units_gives_the_same_weights(tmp_path):
    early = {"beta": 1.0, "schedule": "linear"}
    said = {
        "epochs": (recipe(duration="3 epochs", warmup="1 epoch"), Guidance(**early, end="1.5 epochs")),
        "steps": (recipe(duration="12 steps", warmup="4 steps"), Guidance(**early, end="6 steps")),
        "images": (recipe(duration="192 images", warmup="64 images"), Guidance(**early, end="96 images")),
        "percent": (recipe(duration="180 images", warmup="33.3 %"), Guidance(**early, end="50 %")),
    }
    fitted = [fit(job(training=made, guidance=way, teacher=teacher()), tmp_path / name) for name, (made, way) in said.items()]
    assert all(same(fitted[0], other) for other in fitted[1:])


def test_a_training_cut_within_an_epoch_goes_on_as_it_would_have(tmp_path):
    made = job(training=recipe(duration=f"{3 * STEPS + 2} steps"))
    unbroken = fit(made, tmp_path / "unbroken")
    assert [row["images_seen"] for row in unbroken.history] == [64, 128, 192, 224]
    assert 0 < unbroken.history[-1]["learning_rate"] < unbroken.history[-2]["learning_rate"]
    with pytest.raises(Interrupted):
        fit(made, tmp_path / "resumed", stop_after=3)
    assert same(unbroken, fit(made, tmp_path / "resumed"))


def test_guidance_that_ends_within_an_epoch_keeps_its_teacher_to_the_end_of_that(tmp_path):
    setting = Guidance(beta=1.0, schedule="step", end="6 steps")
    history = fit(job(guidance=setting, teacher=teacher()), tmp_path).history
    assert [row["beta"] for row in history] == [1.0, 1.0, 0.0]
    assert [row["guidance_loss"] > 0 for row in history] == [True, True, False]


def run_of(training, guidance=None) -> runs.Run:
    data = runs.Data({**CARD, "channels": 3}, pictures(70, seed=1), pictures(31, seed=2))
    return runs.of("guided", "x", 0, SL_VIT, training, data=data, guidance=guidance, teacher=guidance and teacher())


def test_what_would_outlast_the_training_is_refused():
    with pytest.raises(UserError, match="^warmup '3 epochs' is 12 steps; it must be less than duration '192 images', 12 steps"):
        run_of(recipe(duration="192 images", warmup="3 epochs"))
    late = Guidance(beta=1.0, schedule="linear", end="300 images")
    with pytest.raises(UserError, match="^guidance end '300 images' is 19 steps; it must be at most duration '3 epochs', 12"):
        run_of(recipe(), late)
    assert run_of(recipe(duration="100 steps"), late).images == 1600


def test_a_refit_has_as_many_epochs_whatever_the_unit():
    first = run_of(recipe(duration="9 steps", result="best"))
    again = runs.refit(first, epochs=2)
    assert first.job.timetable.epochs == again.job.timetable.epochs == 3
    assert again.images == 2 * (101 // 16) * 16


def test_checkpoints_are_epochs_apart_where_that_is_asked_for(tmp_path):
    with pytest.raises(Interrupted):
        fit(job(training=recipe(duration="6 epochs")), tmp_path, stop_after=5, checkpoint_interval="2 epochs")
    assert [path.stem for path in sorted(tmp_path.rglob("epoch-*.pt"))][-1].endswith("4")
