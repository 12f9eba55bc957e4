"""The comparison adds nothing and hides nothing."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import files
from pipeline.config import Augmentation, Experiment, Published, UserError
from pipeline.data import loading
from pipeline.metrics import Answers
from pipeline.report import augmentation, explanations, figures, model_card, page, tables
from pipeline.report.tables import Result
from tests.conftest import job, pictures, recipe

ABOUT = {"kind": "unguided", "name": "vit", "seed": 0, "data_fingerprint": "f"}
HOSTILE = "<script>alert(1)</script>"
CARD = {
    "source": "image_folder",
    "classes": ["$a_b^", HOSTILE],
    "image_shape": [8, 8, 3],
    "counts": {"train": 8, "validation": 2, "test": 10},
    "class_counts": {split: {"$a_b^": 4, HOSTILE: 4} for split in ("train", "validation", "test")},
    "mean": [0.5],
    "std": [0.2],
    "source_sizes": {"smallest": [9, 9], "median": [30, 40], "largest": [300, 400]},
    "encodings": {
        "JPEG": {
            "pictures": 19,
            "modes": {"CMYK": 1, "RGB": 18},
            "quality": {"least": 75, "median": 90, "most": 95},
            "subsampling": {"4:2:0": 19},
        },
        "PNG": {"pictures": 1, "modes": {"L": 1}},
    },
    "duplicates": {"across": [["train: a", f"test: {HOSTILE}"]], "within": [], "conflicting": []},
    "dropped": [],
    "unreadable": [],
    "problems": [f"the same picture is in several splits, 1 times: train: a = test: {HOSTILE}"],
    "fingerprint": "f",
}


def result(kind: str, name: str, seed: int, correct: int, seconds: float) -> Result:
    accuracy = correct / 10
    test = {"accuracy": accuracy, "balanced_accuracy": accuracy, "loss": 1.0, "calibration_error": 0.1, "top5_accuracy": 1.0}
    test |= {"blockness": 0.4, "moved_blockness": 0.1} if kind != "teacher" else {}
    cost = {"parameters": 2_756_744, "macs": 189_522_816, "activation_bytes": 3_000_000, "inference_images_per_second": 10.0}
    training = {
        "val_accuracy": 0.5,
        "train_seconds": seconds,
        "typical_train_seconds": seconds,
        "train_images_per_second": 8 / seconds,
        "hardware": "abacus",
    }
    about = {"network": {"model": "vit"}, "training": {"result": "last"}, "guidance": None}
    about |= {"guidance": {"distillation": "none", "offline": False}} if kind == "guided" else {}
    about |= {"identity": "i", "versions": {"torch": "2"}}
    curve = [{"epoch": float(e), "images_seen": 8.0 * e, "val_accuracy": 0.4 * e, "val_loss": 1.0 / e} for e in (1, 2)]
    if kind == "guided":
        alike = {"guidance_cka_1": 0.5 + 0.1 * seed, "guidance_cka_2": -0.1}
        curve = [{**row, **alike, "beta": 2.0 - row["epoch"]} for row in curve]
    labels = np.arange(10) % 2
    told = Answers(labels, np.where(np.arange(10) < correct, labels, 1 - labels), np.linspace(0.5, 1, 10))
    kinds = (("none", 0), ("blur", 1), ("blur", 2))
    worse = [{"corruption": kind, "strength": level, "pictures": 7, "accuracy": accuracy} for kind, level in kinds]
    about = {"espalier": about}
    return Result(kind, name, seed, training, test | cost, curve, told.confusion(2), about, told, insight(kind, told), worse)


def insight(kind: str, told: Answers) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pictures, mistakes = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), told.worst(3)
    found = {"rows": np.arange(4), "pictures": pictures, "saliency": rng.random((4, 8, 8)), "gram": rng.random((2, 9, 9))}
    found |= {"mistakes": mistakes, "mistaken": pictures[: len(mistakes)], "blockness": np.array([0.4, 0.1])}
    if kind != "teacher":
        found |= {"attention": rng.random((4, 2, 4, 4)), "divergence": rng.random(3), "distance": np.array([1, np.nan, 2])}
        found |= {"temperature": rng.random((3, 3)), "rollout": rng.random((4, 4, 4)), "smooth": rng.random((4, 8, 8))}
    return found


RESULTS = [
    result("teacher", "resnet", 0, 9, 5.0),
    result("unguided", "vit", 0, 6, 10.0),
    result("unguided", "vit", 1, 8, 10.0),
    result("guided", "vit-early", 0, 7, 12.0),
    result("guided", "vit-early", 1, 7, 12.0),
]


def sheet() -> figures.Figure:
    return figures.contact_sheet({"as it is": np.eye(8, dtype=np.uint8)[None, ..., None].repeat(2, 0)}, CARD["classes"], {})


def test_rows_are_means_and_spreads_over_seeds():
    teacher, alone, guided = tables.comparison(RESULTS)
    assert teacher["test_accuracy_spread"] is None and teacher["seeds"] == 1
    assert alone["test_accuracy"] == pytest.approx(0.7) and alone["test_accuracy_spread"] == pytest.approx(0.1414, abs=1e-4)
    assert guided["guidance_extra_time"] == pytest.approx(0.2) and alone["guidance_extra_time"] is None
    assert guided["guidance_extra_macs"] == pytest.approx(0.5 / 3)  # the teacher, as large as the student, in one epoch of two
    assert alone["guidance_extra_macs"] is None


def test_the_networks_of_an_experiment_are_all_named():
    experiment = Experiment(seeds=[0], teacher="r", unguided=["a", "b"], guided=["b"], guidance=["x", "y"])
    assert tables.networks(experiment) == [
        ("teacher", "r"),
        ("unguided", "a"),
        ("unguided", "b"),
        ("guided", "b-x"),
        ("guided", "b-y"),
    ]


def test_a_table_may_have_rows_that_lack_a_key(tmp_path):
    files.write_csv(tmp_path / "curves.csv", [{"epoch": 1}, {"epoch": 1, "distillation_loss": 2.5}, {"epoch": 2}])
    assert (tmp_path / "curves.csv").read_text() == "epoch,distillation_loss\n1,\n1,2.5\n2,\n"


def test_confusions_add_up_over_seeds():
    rows = tables.confusions(RESULTS, CARD["classes"])
    assert sum(row["count"] for row in rows) == 50 and {row["network"] for row in rows} == {r.network for r in RESULTS}


def test_the_page_is_whole_and_escapes_what_it_is_given():
    text = page.render(RESULTS, CARD, sheet())
    assert HOSTILE not in text and "&lt;script&gt;" in text
    assert (
        text.count("<svg") == 2 + 3 + 1 + 1 + 3 + 1 + 1
        and "2.8 M" in text
        and "189.5 M" in text
        and "± 14.1" in text
        and "+17 %" in text
    )
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"', text)
    assert not outside, "the page must need nothing but itself"
    assert text.count('<img class="sheet" src="data:image/png;base64,') == 3
    assert not re.search(r">\s*(None|nan)\b", text)


def test_the_page_tells_what_the_data_card_tells():
    text = page.render(RESULTS, CARD, sheet())
    for told in (
        "JPEG 19 (CMYK, RGB, quality about 75 to 95, 4:2:0); PNG 1 (L)",
        "9 x 9 to 300 x 400, median 30 x 40",
        "1 across, 0 within, 0 conflicting; 0 dropped",
        "<b>Warning:</b> the same picture is in several splits, 1 times",
    ):
        assert told in text


def test_a_papers_numbers_stand_beside_ours_where_it_has_any_on_these_pictures():
    numbers = {"unguided/vit": 93.58, "unguided/another": 12.34}
    here = Published(
        source="Lee & al., table 2",
        differs="fewer pictures",
        accuracy={"image_folder": numbers, "svhn": {"teacher/resnet": 97.73}},
    )
    text = page.render(RESULTS, CARD, sheet(), papers=[here])
    row = re.search(r"<tr><td>unguided/vit</td><td>Lee &amp; al., table 2</td>.*</tr>", text)
    assert row and all(told in row[0] for told in ("93.58", "70.00", "39.7 to 89.2"))
    assert "How this recipe differs: fewer pictures." in text and "97.73" not in text and "12.34" not in text
    elsewhere = here.model_copy(update={"accuracy": {"svhn": numbers}})
    assert page.render(RESULTS, CARD, sheet(), papers=[elsewhere]) == page.render(RESULTS, CARD, sheet())


def test_equal_results_make_an_equal_page():
    assert page.render(RESULTS, CARD, sheet()) == page.render(RESULTS, CARD, sheet())


@pytest.mark.parametrize("classes", [2, 12, 40, 200])
def test_a_confusion_of_any_number_of_classes_is_drawn(classes):
    names = [f"class with a long name {index}" for index in range(classes)]
    assert figures.svg(figures.confusion(np.eye(classes, dtype=int), names, title="x")).startswith("<svg")


def test_one_networks_explanation_shows_all_that_it_has():
    for of, columns in ((RESULTS[0], 1 + 1), (RESULTS[1], 1 + 1 + 1 + 1 + 2)):
        drawn = explanations.of_one(of.insight, of.answers, CARD["classes"])
        assert len(drawn.get_axes()) == 4 * columns


def test_a_network_keeps_its_colour_in_every_figure():
    lines = {"teacher/r": [], "unguided/a": [1.0, 2.0], "guided/a-b": [2.0, 1.0]}
    drawn = figures.profiles(lines, x="layer", y="y").get_axes()[0].get_lines()
    curves = figures.learning_curves({name: [[(1, 0.1), (2, 0.2)]] for name in lines}, x="x", y="y").get_axes()[0].get_lines()
    assert [line.get_color() for line in drawn] == [line.get_color() for line in curves][1:]


def test_likeness_by_epoch_is_of_guided_students_with_a_dot_where_guidance_ended():
    groups = tables.by_network(RESULTS)
    panels = explanations.likeness_by_epoch(groups)
    assert panels["guided layer 1"] == {"guided/vit-early": [(1.0, pytest.approx(0.55)), (2.0, pytest.approx(0.55))]}
    assert list(panels) == ["guided layer 1", "guided layer 2"]
    assert explanations.likeness_by_epoch({"unguided/vit": groups["unguided/vit"]}) == {}
    end = explanations.last_guided_epoch(groups["guided/vit-early"][0].curve)
    drawn = figures.courses(panels, {"guided/vit-early": end}, networks=list(groups), x="x", y="y").get_axes()[0].get_lines()
    assert end == 1 and drawn[1].get_xydata().tolist() == [[1.0, pytest.approx(0.55)]]
    assert drawn[0].get_color() == figures.COLOURS[2] == drawn[1].get_color()
    assert explanations.last_guided_epoch([{"epoch": 1.0, "beta": 2.5}, {"epoch": 2.0, "beta": 2.5}]) is None


def test_a_map_is_drawn_from_its_least_to_its_most():
    colours = figures.heat(np.array([[[0.0, 1.0]], [[5.0, 7.0]], [[3.0, 3.0]]]))
    assert np.array_equal(colours[0], colours[1]) and not np.array_equal(colours[0, 0, 0], colours[0, 0, 1])
    assert np.array_equal(colours[2, 0, 0], colours[2, 0, 1])


def test_the_time_to_an_accuracy_is_that_of_the_epoch_that_reached_it():
    assert tables.common_level(RESULTS) == 0.8
    assert [row["seconds_to_common_level"] for row in tables.comparison(RESULTS)] == [5.0, 10.0, 12.0]


def test_a_model_card_tells_what_a_person_should_know():
    config = job().config | {"espalier": {**RESULTS[1].config["espalier"], **ABOUT}}
    scores = {**RESULTS[1].test, "accuracy_low": 0.3, "accuracy_high": 0.8}
    text = model_card.render(config, Path("models/x"), scores, np.array([[5, 0, 0], [1, 4, 0], [3, 0, 0]]))
    for told in (
        "60.0 % (95 %: 30.0 to 80.0)",
        "| emu | 3 | - | 0.000 | 0.000 |",
        "recognises emu least",
        "local-dir:models/x",
    ):
        assert told in text
    assert "noise, blur" not in text, "what was not measured is not told"


def test_a_contact_sheet_shows_every_picture_and_every_mixed_label(tmp_path):
    mixed = recipe(augmentation=Augmentation(crop_padding=1, mixup_alpha=1.0))
    card = {**CARD, "classes": ["cat", "dog", "emu"], "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    drawn = augmentation.sheet(loading.open_source(pictures(20, 0), torch.device("cpu")), card, mixed, seed=0)
    cells = drawn.get_axes()
    assert len(cells) == augmentation.PICTURES * (1 + augmentation.EPOCHS)
    assert any("0." in cell.get_xlabel() and "\n" in cell.get_xlabel() for cell in cells)
    figures.write(drawn, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"sheet.docx: its ending names no format of pictures; known: .*png"):
        figures.write(drawn, tmp_path / "sheet.docx")
