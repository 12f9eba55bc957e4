"""A search tries what it was told to, loses nothing, and its trials are runs as any other."""

import json
import math
import shlex
from dataclasses import replace
from itertools import product

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import config, distributed, runs
from pipeline.config import UserError
from pipeline.report import figures
from pipeline.report import search as shown
from pipeline.search import candidates, trials, tune
from pipeline.search.candidates import Drawn, Subject
from pipeline.search.trials import Ledger, Trial
from pipeline.space import Domain, Search
from tests.conftest import CARD, cluster, numbers, pictures, teacher

DEPTH, WIDTH = "students.vit.depth", "students.vit.width"
RATE, BATCH = "training.student.learning_rate", "training.student.batch_size"
SPACE = {DEPTH: {"choice": [1, 2]}, RATE: {"loguniform": [1e-3, 1e-2]}}


def search(**changes) -> Search:
    plain = {"student": "vit", "space": SPACE, "searcher": "random", "scheduler": "none", "budget": {"trials": 3}}
    return Search.model_validate({**plain, **changes})


def subject(params, **changes) -> Subject:
    """A small student on 70 pictures; epochs, batch size and seeds fit for a test."""
    small = {WIDTH: 16, "students.vit.heads": 2, DEPTH: 2, BATCH: 16, "training.student.duration": "3 epochs"}
    settings = config.replaced(params, {**small, "training.student.warmup": "1 epoch"})
    data = runs.Data({**CARD, "channels": 3}, pictures(70, seed=1), pictures(31, seed=2))
    plan = search(**changes)
    return Subject(plan, config.replaced(settings, {"search": plan.model_dump()}), data, {})


def trial(number=1, *, scores=(0.5,), over=True, point=None, seed=0, epochs=None) -> Trial:
    rows = [
        {"epoch": epoch, "images_seen": 64 * epoch, "learning_rate": 0.1, "train_seconds": 1.0, "objective": score}
        | {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": score}
        for epoch, score in enumerate(scores, 1)
    ]
    made = Trial(number, point or {DEPTH: number}, seed, "i", "running", "", epochs or len(rows), over, rows)
    made.end()
    return made


# What can be written wrongly


@pytest.mark.parametrize(
    ("dotted", "value", "line"),
    [
        ("search.student", "vitt", "search.student is 'vitt', which is not in students; known: vit, sl_vit"),
        ("search.guidance", "late", "search.guidance is 'late', which is not in guidance; known: constant, early"),
        ("search.serch", 1, "unknown key 'search.serch'; did you mean 'searcher'?"),
        ("search.space", {"training.student.epohcs": {"choice": [1]}}, "search.space: unknown key 'training.student.epohcs'"),
        (
            "search.space",
            {DEPTH: {"choise": [1]}},
            "unknown key 'search.space.students.vit.depth.choise'; did you mean 'choice'?",
        ),
        ("search.space", {DEPTH: {"choice": ["deep"]}}, "search.space: students.vit.depth is 'deep': input should be a valid"),
        ("search.space", {"data.image_size": {"choice": [8]}}, "search.space holds 'data.image_size'; the settings of this"),
        ("search.space", {RATE: {"uniform": [1, 0.5]}}, "search.space.training.student.learning_rate: uniform goes from 1 to"),
        ("search.space", {RATE: {"loguniform": [0, 1]}}, "search.space.training.student.learning_rate: loguniform begins at"),
        (
            "search.space",
            {RATE: {"uniform": [1, 2], "choice": [1]}},
            "search.space.training.student.learning_rate: give exactly",
        ),
        ("search.space", {DEPTH: {"grid": [1, 2]}}, "search: searcher optuna draws; 'students.vit.depth' is a grid"),
        ("search.searcher", "grid", "search: searcher grid visits grids; 'students.vit.depth' is a choice"),
        ("search.points", [{DEPTH: 5}], "search: points: 'students.vit.depth' is 5, outside of choice"),
        ("search.points", [{WIDTH: 5}], "search: points: 'students.vit.width' is not in the space; known:"),
        ("search.space", {}, "search: space is empty; name a setting, or set budget.trials to 0 for no search"),
        ("search.finalists", 2, "search.finalists 2 have no effect with one seed; give experiment.seeds more"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(params, dotted, value, line):
    changed = {**params, "search": dict(params["search"])}
    changed["search"][dotted.split(".")[1]] = value
    with pytest.raises(UserError) as error:
        config.parse(changed)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"params.yaml: {line}"), lines


# Candidates

NUMBER = st.floats(1e-6, 1e6)
DOMAINS = st.one_of(
    st.lists(st.one_of(st.booleans(), st.integers(), st.text(), st.none(), st.lists(st.integers())), min_size=1).map(
        lambda values: Domain(choice=values)
    ),
    st.lists(NUMBER, min_size=2, max_size=2, unique=True).map(lambda ends: Domain(uniform=sorted(ends))),
    st.lists(NUMBER, min_size=2, max_size=2, unique=True).map(lambda ends: Domain(loguniform=sorted(ends))),
    st.lists(st.integers(-9, 99), min_size=2, max_size=2, unique=True).map(lambda ends: Domain(randint=sorted(ends))),
)


@given(domain=DOMAINS, seed=st.integers(0, 99))
def test_what_is_drawn_lies_in_the_space_and_is_drawn_again_as_it_was(domain, seed):
    space = {"x": domain}
    source = candidates.study(search(), seed=seed)
    point = candidates.decoded(source.ask(candidates.distributions(space)).params, space)
    assert domain.holds(point["x"])
    source.enqueue_trial(candidates.encoded(point, space))
    again = candidates.decoded(source.ask(candidates.distributions(space)).params, space)
    assert json.dumps(again) == json.dumps(point)


def test_a_setting_of_0_0_is_the_0_that_a_choice_lists():
    space = {"x": Domain(choice=[0, 0.1])}
    assert candidates.encoded({"x": 0.0}, space) == {"x": "0"}


def drawn(made, ledger, score=lambda point: 0.5):
    """All candidates of a search whose every trial succeeds at once."""
    source, points = Drawn(made, ledger, seed=0), []
    while found := source.next():
        point, seed, asked = found
        points.append(point)
        begun = ledger.begin(point, seed)
        begun.history, begun.over = trial(scores=[score(point)]).history, True
        begun.end()
        ledger.keep(begun)
        source.learn(asked, begun)
    return points


def test_a_grid_is_visited_once_each_and_the_budget_ends_it(params, tmp_path):
    space = {DEPTH: {"grid": [1, 2]}, BATCH: {"grid": [8, 16, 32]}}
    made = subject(params, searcher="grid", space=space, budget={"trials": 99})
    cells = [dict(zip(space, values, strict=True)) for values in product([1, 2], [8, 16, 32])]
    assert drawn(made, Ledger(tmp_path / "a")) == cells
    fewer = subject(params, searcher="grid", space=space, budget={"trials": 4})
    assert drawn(fewer, Ledger(tmp_path / "b")) == cells[:4]


def test_the_present_settings_go_first_as_far_as_they_lie_in_the_space(params, tmp_path):
    made = subject(params)
    assert drawn(made, Ledger(tmp_path / "a"))[0] == {DEPTH: 2, RATE: 0.003}
    given_points = subject(params, points=[{RATE: 0.01}, {DEPTH: 1}])
    assert drawn(given_points, Ledger(tmp_path / "b"))[:2] == [{DEPTH: 2, RATE: 0.01}, {DEPTH: 1, RATE: 0.003}]
    outside = subject(params, space={DEPTH: {"choice": [3, 4]}, RATE: SPACE[RATE]})
    first = drawn(outside, Ledger(tmp_path / "c"))[0]
    assert first[DEPTH] in (3, 4) and first[RATE] == 0.003


def test_a_guided_candidate_is_the_run_of_the_stage_guided(params):
    space = {"guidance.early.beta": {"uniform": [0.5, 5.0]}, RATE: SPACE[RATE]}
    made = replace(subject(params, guidance="early", space=space), teachers={3: teacher()})
    run = made.run({"guidance.early.beta": 1.5, RATE: 0.002}, seed=3)
    assert run.label == "guided/vit-early/3" and run.job.guidance.beta == 1.5 and run.job.training.learning_rate == 0.002
    assert run.settings["teacher"] == teacher().digest and run.settings["guidance"]["schedule"] == "cosine"
    assert made.current() == {"guidance.early.beta": 2.5, RATE: 0.003}


def test_the_epochs_of_a_search_go_before_those_of_the_recipe(params):
    assert subject(params, duration="2 epochs").run({DEPTH: 1}, 0).job.timetable.epochs == 2
    with pytest.raises(UserError, match="candidate: training.student: warmup '1 epoch' must be less than duration '1 epoch'"):
        subject(params, duration="1 epoch").run({DEPTH: 1}, 0)


@pytest.mark.parametrize("budget", [{"trials": 9, "images": 64 * 4}, {"trials": 4}])
def test_the_budget_is_kept(params, tmp_path, budget):
    assert len(drawn(subject(params, budget=budget), Ledger(tmp_path))) == 4


def test_no_trial_is_begun_after_the_minutes(params, tmp_path):
    ledger = Ledger(tmp_path)
    ledger._seconds = 61.0
    assert drawn(subject(params, budget={"trials": 9, "minutes": 1}), ledger) == []


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_search_that_goes_further_begins_with_what_it_has_and_draws_anew(params, tmp_path, searcher):
    space = {RATE: {"loguniform": [1e-3, 1e-2]}}
    first = drawn(subject(params, space=space, searcher=searcher, budget={"trials": 6}), Ledger(tmp_path))
    more = drawn(subject(params, space=space, searcher=searcher, budget={"trials": 12}), Ledger(tmp_path))
    assert more[:6] == first and len({point[RATE] for point in more}) == 12


def test_optuna_comes_closer_than_chance(params, tmp_path):
    space = {RATE: {"loguniform": [1e-5, 1e-1]}, "training.student.weight_decay": {"loguniform": [1e-5, 1e-1]}}

    def score(point):
        return -sum((math.log10(value) + 2) ** 2 for value in point.values())

    def late(searcher):
        made = subject(params, space=space, searcher=searcher, budget={"trials": 60})
        return [score(point) for point in drawn(made, Ledger(tmp_path / searcher), score)[30:]]

    assert sum(late("optuna")) > sum(late("random")) / 2  # the sums are negative


# Which one is best


def test_the_best_is_one_that_was_trained_to_its_end():
    early, late = trial(1, scores=[0.9], over=False, epochs=3), trial(2, scores=[0.1, 0.2, 0.3])
    assert trials.best_first([early, late], search())[0] == [late]
    assert early.status == "stopped" and late.status == "finished"


def test_less_loss_is_better():
    worse, better = trial(1, scores=[0.9]), trial(2, scores=[0.2])
    assert trials.best([worse, better], search(objective="val_loss"))["trials"] == [2]


def test_finalists_are_judged_by_the_mean_of_all_seeds():
    first = [trial(1, point={DEPTH: 1}, scores=[0.9]), trial(3, point={DEPTH: 1}, seed=1, scores=[0.3])]
    second = [trial(2, point={DEPTH: 2}, scores=[0.8]), trial(4, point={DEPTH: 2}, seed=1, scores=[0.6])]
    second[1].point, second[0].point = {RATE: 0.1, DEPTH: 2}, {DEPTH: 2, RATE: 0.1}  # in any order
    alone = trial(5, point={DEPTH: 3}, scores=[0.95])
    best = trials.best([*first, *second, alone], search())
    assert best["settings"] == {DEPTH: 2, RATE: 0.1} and best["value"] == pytest.approx(0.7) and best["seeds"] == [0, 1]


def test_a_loss_that_is_no_number_is_a_failure():
    made = trial()
    made.history[-1]["val_loss"] = math.nan
    made.end()
    assert made.status == "failed" and made.failure == "the validation loss is nan"


@given(point=st.fixed_dictionaries({RATE: st.floats(1e-9, 1e3), DEPTH: st.integers(), "a.b": st.none() | st.booleans()}))
def test_the_command_adopts_the_settings_as_they_are(point):
    words = shlex.split(trials.adoption(point))
    assert words[:3] == ["dvc", "exp", "run"] and set(words[3::2]) == {"-S"}
    read = {name: YAML(typ="safe").load(value) for name, value in (word.split("=", 1) for word in words[4::2])}
    assert read == point


def test_a_search_fails_below_its_quorum_and_says_why_the_first_trial_failed():
    broken = Trial(2, {DEPTH: 2}, 0)
    broken.end("it diverged")
    tune._refuse_too_many_failures([trial(1), broken], search(quorum=0.5))
    with pytest.raises(UserError, match=r"1 of 2 trials succeeded, fewer than search.quorum 0.6; trial 2: it diverged"):
        tune._refuse_too_many_failures([trial(1), broken], search(quorum=0.6))
    with pytest.raises(UserError, match="0 of 1 trials succeeded"):
        tune._refuse_too_many_failures([broken], search(quorum=0.0))


def test_a_ledger_is_what_it_was_when_it_is_opened_again(tmp_path):
    ledger = Ledger(tmp_path)
    begun = ledger.begin({RATE: 0.1}, 0)
    begun.tell(trial().history[0])
    ledger.keep(begun)
    again = Ledger(tmp_path)
    assert again.before == [begun] and again.begin({RATE: 0.1}, 0) == begun and again.seconds >= 0
    assert again.begin({RATE: 0.1}, 1).history == []


# Figures


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_a_search_of_any_length_is_drawn(count):
    made = [
        trial(n, point={DEPTH: 1 + n % 2, RATE: 1e-3 * (1 + n % 9)}, scores=[0.1, n / 30][: 1 + n % 2], over=n % 2, epochs=2)
        for n in range(count)
    ]
    for figure in (shown.importance(made, search()), shown.parallel(made, search())):
        assert figures.svg(figure) == figures.svg(figure) and figures.svg(figure).startswith("<svg")


def test_importance_finds_the_setting_that_matters_at_the_last_epoch_that_all_reached():
    made = [
        trial(n, point={DEPTH: 1 + n % 2, RATE: 1e-3 * (1 + n / 9)}, scores=[n % 2, 0.5][: 1 + n % 3], over=n % 3, epochs=2)
        for n in range(24)
    ]
    found, epoch = candidates.importances(made, search())
    assert epoch == 1 and found[DEPTH] > 0.9


def test_the_section_holds_every_trial_in_the_columns_of_hu(tmp_path):
    broken = Trial(3, {DEPTH: 2, RATE: 0.1}, 0)
    broken.end("<b>lost</b>")
    made = [trial(1, point={DEPTH: 1, RATE: 0.001}), trial(2, point={DEPTH: 2, RATE: 0.002}), broken]
    text = shown.section(made, search(), trials.best(made, search()))
    assert "<b>lost</b>" not in text and text.count("<tr>") == 4
    for column in ("depth", "learning_rate", "s / epoch", "train loss", "validation loss", "validation accuracy"):
        assert f"<th>{column}</th>" in text


# With Ray


@pytest.fixture(scope="module")
def ray():
    """One Ray for all tests of this module."""
    with distributed.ray_session():
        yield


def run(made, tmp_path, *, seeds=(0,), listener=None, **changes):
    where = cluster(scratch=str(tmp_path), **changes)
    return tune.search(made, where, seeds=seeds, identity="search", listener=listener or tune.Listener())


@pytest.mark.timeout(300)
def test_trials_are_runs_as_any_other_and_what_fails_is_a_row(ray, params, tmp_path):
    points = [{DEPTH: 2, RATE: 0.003, WIDTH: 16}, {DEPTH: 1, RATE: 1e30, WIDTH: 16}, {DEPTH: 2, RATE: 0.01, WIDTH: 15}]
    space = {DEPTH: {"choice": [1, 2]}, RATE: {"loguniform": [1e-3, 1e30]}, WIDTH: {"choice": [15, 16]}}
    made = subject(params, space=space, points=points, quorum=0.3)
    good, diverged, impossible = run(made, tmp_path)
    assert [each.status for each in (good, diverged, impossible)] == ["finished", "failed", "failed"]
    assert "the training loss is no number from step" in diverged.failure
    assert impossible.failure.startswith("candidate: students.vit.heads 2 does not divide width 15")

    network, training = config.parse(config.replaced(made.settings, points[0])).students["vit"], made.settings["training"]
    again = runs.of("unguided", "vit", 0, network, config.Training(**training["student"]), data=made.data)
    assert again.identity == good.identity and (tmp_path / again.identity / "finished").is_dir()
    alone = distributed.fit(
        again.job, cluster(scratch=str(tmp_path / "alone")), identity="run", listener=distributed.Listener()
    )
    assert [row["epoch"] for row in good.history] == [1, 2, 3]
    for mine, other in zip(numbers(good.history), numbers(alone.history), strict=True):
        assert {key: mine[key] for key in other} == pytest.approx(other, rel=1e-5)


@pytest.mark.timeout(300)
def test_an_interrupted_search_goes_on_and_repeats_nothing(ray, params, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(trial, row):
        if trial.number == 3 and row["epoch"] == 1:
            raise Interrupted

    told = []
    made = subject(params, scheduler="asha", budget={"trials": 4})
    with pytest.raises(Exception, match="Interrupted"):
        run(made, tmp_path, listener=tune.Listener(epoch=interrupt))
    before = {each.number: each for each in Ledger(tmp_path / "search").before}
    done = run(made, tmp_path, listener=tune.Listener(epoch=lambda trial, row: told.append((trial.number, row["epoch"]))))
    assert [each.number for each in done] == [1, 2, 3, 4] and all(each.succeeded for each in done)
    for number, earlier in before.items():
        assert done[number - 1].point == earlier.point
        if earlier.succeeded:
            assert done[number - 1].history == earlier.history and number not in {one for one, _ in told}
    assert run(made, tmp_path) == done  # finished: what it came to is given


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trial_whose_process_is_lost_goes_on_in_another(ray, params, tmp_path):
    killed = []

    def kill(trial, row):
        if row["epoch"] == 2 and not killed:
            named = [each for each in psutil.Process().children(recursive=True) if "ImplicitFunc" in " ".join(each.cmdline())]
            killed.extend(named)
            for process in named:
                process.kill()

    made = subject(params, budget={"trials": 1})
    (survivor,) = run(made, tmp_path, listener=tune.Listener(epoch=kill))
    assert killed and survivor.status == "finished" and [row["epoch"] for row in survivor.history] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_finalists_are_trained_with_all_seeds(ray, params, tmp_path):
    params["experiment"] = {**params["experiment"], "seeds": [0, 1]}
    made = subject(params, finalists=1, budget={"trials": 2})
    done = run(made, tmp_path, seeds=(0, 1))
    assert sorted(each.seed for each in done) == [0, 0, 1]
    best = trials.best(done, made.search)
    assert best["seeds"] == [0, 1] and best["spread"] is not None


def test_what_can_never_run_is_refused_in_one_line(ray, params, tmp_path):
    with pytest.raises(UserError, match=r"a trial with 999 CPU would wait for ever: the largest node of Ray has \d+ CPU"):
        run(subject(params), tmp_path, cpus_per_worker=999)


def test_no_trials_is_no_search(params, tmp_path):
    assert run(subject(params, budget={"trials": 0}), tmp_path) == []
