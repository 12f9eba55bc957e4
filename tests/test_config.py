"""What a person can write wrongly in params.yaml is said in one line that names it."""

import copy
from pathlib import Path

import pytest

from pipeline import config
from pipeline.config import UserError
from pipeline.networks import default_patch_size


def test_the_committed_params_are_valid():
    (settings,) = config.load("students.sl_vit")
    assert settings.spt and settings.lsa


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("training.student.duratoin", 3, "unknown key 'training.student.duratoin'; did you mean 'duration'?"),
        ("students.vit.widht", 3, "unknown key 'students.vit.widht'; did you mean 'width'?"),
        ("guidance.early.beat", 3, "unknown key 'guidance.early.beat'; did you mean 'beta'?"),
        ("studnets", {}, "unknown key 'studnets'; did you mean 'students'?"),
        ("students.vit.model", "vitt", "students.vit.model is 'vitt'; known models: 'vit', 'hybrid', 't2t', 'cait', 'pit', "),
        ("students.vit.heads", 5, "students.vit.heads 5 does not divide width 96; 4 or 6 would"),
        ("students.vit.patch_size", 3, "students.vit.patch_size 3 does not divide data.image_size 8; 2 or 4 would"),
        ("teachers.resnet.depth", 21, "teachers.resnet.depth 21 is not 6n + 2; 20 or 26 would be"),
        ("training.student.learning_rate", -1.0, "training.student.learning_rate is -1.0: input should be greater than 0"),
        ("training.student.accumulate", "many", "training.student.accumulate is 'many': input should be a valid integer"),
        (
            "training.student.duration",
            30,
            "training.student.duration is 30: it must be a positive number with one of the units ",
        ),
        (
            "training.student.duration",
            "0 steps",
            "training.student.duration is '0 steps': it must be a positive number with one",
        ),
        ("training.student.duration", "10 %", "training.student.duration is '10 %': it must be a positive number with one of "),
        ("training.student.warmup", "20 epochs", "training.student: warmup '20 epochs' must be less than duration '20 epochs'"),
        ("training.student.warmup", "100 %", "training.student: warmup '100 %' must be less than duration '20 epochs'"),
        (
            "training.student.patience",
            "2 weeks",
            "training.student.patience is '2 weeks': it must be a positive number with one",
        ),
        ("guidance.early.end", "101 %", "guidance.early.end is '101 %': it must be a positive number with one of the units "),
        ("guidance.early.end", None, "guidance.early: end is missing: when does schedule cosine reach zero? say '34 %' or "),
        (
            "cluster.checkpoint_interval",
            "3 steps",
            "cluster.checkpoint_interval is '3 steps': it must be a number with one of ",
        ),
        (
            "cluster.num_workers",
            5,
            "training.teacher.batch_size 64 does not divide among cluster.num_workers 5; 60 or 65 would",
        ),
        (
            "training.student.augmentation",
            {"mixup_alpha": 0.8},
            "training.student.batch_size 63 does not divide, in the pairs that are mixed, among cluster.num_workers 1; 62 or",
        ),
        (
            "training.student.augmentation",
            {"repeats": 4},
            "training.student: batch_size 63 does not hold each picture augmentation.repeats 4 times; 60 or 64 would",
        ),
        (
            "training.student.augmentation",
            {"policy": "autoaugment"},
            "training.student.augmentation.policy is 'autoaugment': input should be 'none', 'autoaugment_cifar10'",
        ),
        (
            "training.student.augmentation",
            {"randaugment": {"magnitud": 5}},
            "unknown key 'training.student.augmentation.randaugment.magnitud'; did you mean 'magnitude'?",
        ),
        ("experiment.teacher", "resnt", "experiment.teacher names 'resnt', which is not in teachers; known: resnet"),
        (
            "experiment.published",
            [{"source": "x", "differs": "y", "accuracy": {"svhn": {"unguided/vti": 93.0}}}],
            "experiment.published.0.accuracy.svhn names 'unguided/vti', which is no network here; known: teacher/resnet",
        ),
        (
            "experiment.published",
            [{"source": "x", "difers": "y", "accuracy": {}}],
            "unknown key 'experiment.published.0.difers'; did you mean 'differs'?",
        ),
        ("experiment.seeds", [1, 1], "experiment.seeds holds an entry twice: [1, 1]"),
        ("experiment.seeds", [], "experiment.seeds is []: list should have at least 1 item after validation, not 0"),
        ("data.source", "cifra", "data.source is 'cifra': input should be 'digits', 'image_folder', 'parquet'"),
        ("data.download", True, "data: download is known for cifar10, cifar100, svhn, flowers102, not for digits; fetch it"),
        ("guidance.constant.end", "50 %", "guidance.constant: end has no effect on schedule constant"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(params, path, value, line):
    *parents, key = path.split(".")
    section = params
    for parent in parents:
        section = section[parent]
    section[key] = value
    if key == "augmentation":
        section["batch_size"] = 63
    with pytest.raises(UserError) as error:
        config.parse(params)
    lines = str(error.value).splitlines()
    assert any(found.startswith(f"params.yaml: {line}") for found in lines), lines


def test_a_missing_key_is_named(params):
    broken = copy.deepcopy(params)
    del broken["data"]["image_size"]
    with pytest.raises(UserError, match=r"^params.yaml: 'data.image_size' is missing$"):
        config.parse(broken)


def test_all_mistakes_are_told_at_once(params):
    params["training"]["student"]["duration"] = "0 epochs"
    params["data"]["image_size"] = 2
    with pytest.raises(UserError) as error:
        config.parse(params)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("content", ["a: [", "\tb", "", "- 1"])
def test_a_broken_file_is_one_line(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        config.load("data", path=path)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_section_names_the_known_ones():
    with pytest.raises(UserError, match=r"students.swin is not in params.yaml; known: vit, sl_vit"):
        config.load("students.swin")


def test_a_missing_file_says_where_to_stand(tmp_path):
    with pytest.raises(UserError, match="run from the project's root"):
        config.load("data", path=Path(tmp_path, "params.yaml"))


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 4), (32, 4), (64, 8), (72, 9), (96, 12), (150, 15), (224, 28)])
def test_the_default_patch_divides_and_leaves_about_64_tokens(size, patch):
    assert default_patch_size(size) == patch
    assert size % patch == 0


LEE = {  # reference/notes.md section 4: mixing of half of the batches, three passes an epoch
    "passes_per_epoch": 3,
    "augmentation": {
        "horizontal_flip": True,
        "crop_padding": 4,
        "policy": "autoaugment_cifar10",
        "erase_probability": 0.25,
        "mixup_alpha": 1.0,
        "cutmix_alpha": 1.0,
        "mix_probability": 0.5,
    },
}
LI = {  # the same, section 5.7: small pictures shown at 224 pixels
    "image_size": 224,
    "augmentation": {
        "random_resized_crop": 0.08,
        "horizontal_flip": True,
        "policy": "randaugment",
        "erase_probability": 0.25,
        "erase_mode": "pixel",
    },
}
HOFFER = {"augmentation": {"repeats": 4, "policy": "randaugment", "randaugment": {"magnitude": 7, "magnitude_std": 0}}}


@pytest.mark.parametrize("recipe", [LEE, LI, HOFFER], ids=["Lee et al.", "Li et al.", "repeated augmentation"])
def test_the_recipes_of_the_papers_can_be_written(params, recipe):
    params["training"]["student"] |= recipe | {"batch_size": 128}
    assert config.parse(params).training.student.augmentation.model_dump(exclude_unset=True) == recipe["augmentation"]


def test_pictures_of_any_size_need_a_size_to_be_shown_at(params):
    params["data"]["image_size"] = None
    params["training"]["teacher"]["image_size"] = 32
    with pytest.raises(UserError, match=r"^params.yaml: training.student.image_size is missing: data.image_size is null"):
        config.parse(params)
    params["training"]["student"]["image_size"] = 33
    params["students"]["vit"]["patch_size"] = 4
    with pytest.raises(
        UserError, match=r"^params.yaml: students.vit.patch_size 4 does not divide training.student.image_size 33"
    ):
        config.parse(params)
