"""From evaluations to the rows of the comparison. Pure: results in, tables out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.config import Experiment, Published
from pipeline.metrics import Answers


@dataclass(frozen=True)
class Result:
    """One trained and tested network."""

    kind: str
    name: str
    seed: int
    training: dict[str, Any]  # results/.../training.json
    test: dict[str, float]  # results/.../test.json
    curve: list[dict[str, float]]  # one row per epoch
    confusion: np.ndarray  # (K, K), rows are actual classes
    config: dict[str, Any]  # of its model folder
    answers: Answers  # to the test pictures, in their order
    insight: Mapping[str, np.ndarray]  # see pipeline.explain.insight
    corrupted: list[dict[str, Any]]  # corruption, strength, pictures, accuracy; the first row is of the pictures as they are

    @property
    def network(self) -> str:
        """Its name over all seeds."""
        return f"{self.kind}/{self.name}"


WEIGHTS = {
    "last": "after its last epoch",
    "ema": "averaged over its training",
    "best": "of the epoch that was best on validation",
    "best_ema": "averaged up to the epoch that was best on validation",
}


def weights(config: dict[str, Any]) -> str:
    """Which weights of its training a network has, in words, by its config.json."""
    made = config["espalier"]
    if again := made.get("refit"):
        return f"of a second training, on training and validation pictures, that ended after epoch {again['epochs']}"
    return WEIGHTS[made["training"]["result"]]


def networks(experiment: Experiment) -> list[tuple[str, str]]:
    """(kind, name) of every network that an experiment trains, in the order in which they are shown."""
    return [
        ("teacher", experiment.teacher),
        *(("unguided", student) for student in experiment.unguided),
        *(("guided", f"{student}-{guidance}") for student in experiment.guided for guidance in experiment.guidance),
    ]


def by_network(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each network over its seeds."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.network, []).append(result)
    return groups


def comparison(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per network: means over seeds, and the spread (sample standard deviation) where there is more than one."""
    groups = by_network(results)
    level = common_level(results)
    return [_row(network, group, groups, level) for network, group in groups.items()]


def best(results: Sequence[Result]) -> Result:
    """The network of the best validation accuracy, of several the first."""
    return max(results, key=lambda result: result.training["val_accuracy"])


def common_level(results: Sequence[Result]) -> float:
    """The validation accuracy, in whole percent, that every training reached at some time."""
    return math.floor(100 * min(max(row["val_accuracy"] for row in result.curve) for result in results)) / 100


def _row(network: str, group: list[Result], groups: dict[str, list[Result]], level: float) -> dict[str, Any]:
    accuracy, spread = metrics.mean_and_spread([result.test["accuracy"] for result in group])
    pictures = int(group[0].confusion.sum())
    low, high = metrics.interval(accuracy * pictures, pictures)
    return {
        "network": network,
        "seeds": len(group),
        "test_accuracy": accuracy,
        "test_accuracy_spread": spread,
        "test_low": low,
        "test_high": high,
        "test_top5_accuracy": _mean(group, "test", "top5_accuracy"),
        "test_balanced_accuracy": _mean(group, "test", "balanced_accuracy"),
        "test_loss": _mean(group, "test", "loss"),
        "test_calibration_error": _mean(group, "test", "calibration_error"),
        "test_corrupted_accuracy": _mean_if_any(group, "corrupted_accuracy"),
        "blockness": _mean_if_any(group, "blockness"),
        "moved_blockness": _mean_if_any(group, "moved_blockness"),
        "val_accuracy": _mean(group, "training", "val_accuracy"),
        "parameters": group[0].test["parameters"],
        "macs": group[0].test["macs"],
        "activation_bytes": group[0].test["activation_bytes"],
        "inference_peak_bytes": _mean_if_any(group, "inference_peak_bytes"),
        "train_seconds": _mean(group, "training", "train_seconds"),
        "seconds_to_common_level": metrics.mean_and_spread([_seconds_to(level, result) for result in group])[0],
        "train_images_per_second": _mean(group, "training", "train_images_per_second"),
        "guidance_extra_macs": _extra_macs(group, groups),
        "guidance_extra_time": _extra_time(group, groups),
        "inference_images_per_second": _mean(group, "test", "inference_images_per_second"),
    }


def _mean(group: list[Result], part: str, key: str) -> float:
    return metrics.mean_and_spread([getattr(result, part)[key] for result in group])[0]


def _mean_if_any(group: list[Result], key: str) -> float | None:
    values = [result.test[key] for result in group if key in result.test]
    return metrics.mean_and_spread(values)[0] if values else None


def _seconds_to(level: float, result: Result) -> float:
    """Training time until the validation accuracy first reached a level, at the mean pace of the run."""
    epochs = 1 + next(epoch for epoch, row in enumerate(result.curve) if row["val_accuracy"] >= level)
    return result.training["train_seconds"] * epochs / len(result.curve)


def _extra_macs(group: list[Result], groups: dict[str, list[Result]]) -> float | None:
    """The teacher's forward passes, in the epochs in which it is run, over three times the student's: forward and backward."""
    teacher = next((results for results in groups.values() if results[0].kind == "teacher"), None)
    if group[0].kind != "guided" or teacher is None:
        return None
    run = metrics.mean_and_spread([_epochs_with_teacher(result) / len(result.curve) for result in group])[0]
    return run * teacher[0].test["macs"] / (3 * group[0].test["macs"])


def _epochs_with_teacher(result: Result) -> int:
    guidance = result.config["espalier"]["guidance"]
    if guidance["distillation"] != "none":
        return len(result.curve)
    return 0 if guidance["offline"] else sum(row["beta"] > 0 for row in result.curve)


def _extra_time(group: list[Result], groups: dict[str, list[Result]]) -> float | None:
    """Training time, at the median pace, over that of the same student without guidance, less one; None without such a pair."""
    if group[0].kind != "guided":
        return None
    alone = groups.get(f"unguided/{group[0].name.split('-')[0]}")
    key = "typical_train_seconds"
    return _mean(group, "training", key) / _mean(alone, "training", key) - 1 if alone else None


def beside_published(rows: Sequence[dict[str, Any]], papers: Sequence[Published], source: str) -> list[dict[str, Any]]:
    """The rows of the comparison whose accuracy on this source of pictures a paper gives, one per network and paper."""
    return [
        {"paper": paper.source, "published_accuracy": paper.on(source)[row["network"]] / 100, **row}
        for row in rows
        for paper in papers
        if row["network"] in paper.on(source)
    ]


def curves(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every epoch of every network and seed, in one long table."""
    return [{"network": f"{result.network}/{result.seed}", **row} for result in results for row in result.curve]


def confusions(results: Sequence[Result], classes: list[str]) -> list[dict[str, Any]]:
    """The confusion matrices, added up over seeds, in one long table."""
    return [
        {"network": network, **row}
        for network, group in by_network(results).items()
        for row in metrics.confusion_rows(sum(result.confusion for result in group), classes)  # type: ignore[arg-type]
    ]


def per_class(results: Sequence[Result], classes: list[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of every class and network, counted over seeds, in one long table."""
    return [
        {"network": network, **row}
        for network, group in by_network(results).items()
        for row in metrics.per_class(sum(result.confusion for result in group), classes)  # type: ignore[arg-type]
    ]


def corrupted(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Accuracy on test pictures made worse, by network, kind and strength: the mean over seeds, in one long table."""
    return [
        {"network": network, **first, "accuracy": metrics.mean_and_spread([row["accuracy"] for row in (first, *others)])[0]}
        for network, group in by_network(results).items()
        for first, *others in zip(*(result.corrupted for result in group), strict=True)
    ]


def data_facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """What the data card tells, in words: one row per fact."""
    sizes = {name: " x ".join(map(str, pixels)) for name, pixels in card["source_sizes"].items()}
    duplicates = ", ".join(f"{len(groups)} {kind}" for kind, groups in card["duplicates"].items())
    stored = " x ".join(map(str, card["image_shape"])) if card["image_shape"] else "each as its owner encoded it"
    return [
        ("source", card["source"]),
        ("pictures", ", ".join(f"{count:,} {split}" for split, count in card["counts"].items())),
        ("classes", f"{len(card['classes'])}; {_range_of_classes(card['class_counts']['train'])}"),
        ("as their owner has them", "; ".join(_encoding(name, found) for name, found in card["encodings"].items())),
        ("height x width, px", f"{sizes['smallest']} to {sizes['largest']}, median {sizes['median']}"),
        ("as stored", stored),
        ("mean of train, in [0, 1]", ", ".join(f"{value:.4f}" for value in card["mean"])),
        ("standard deviation", ", ".join(f"{value:.4f}" for value in card["std"])),
        ("duplicates", f"{duplicates}; {len(card['dropped'])} dropped"),
        ("unreadable", f"{len(card['unreadable'])} skipped"),
        ("fingerprint", card["fingerprint"]),
    ]


def _range_of_classes(counts: dict[str, int]) -> str:
    least, most = min(counts.values()), max(counts.values())
    return f"{least:,} training pictures each" if least == most else f"{least:,} to {most:,} training pictures each"


def _encoding(name: str, found: dict[str, Any]) -> str:
    """Of one file format: "JPEG 50,000 (RGB, quality about 75, 4:2:0)"."""
    quality = found.get("quality")
    told = list(found["modes"])
    if quality:
        span = {quality["least"], quality["most"]}
        told.append(f"quality about {' to '.join(map(str, sorted(span)))}")
        told += [kind for kind in found["subsampling"] if kind]
    return f"{name} {found['pictures']:,} ({', '.join(told)})"
