"""Explanations side by side, in the forms of the papers, from what `insight.of` found of each network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import similarity
from pipeline.metrics import Answers
from pipeline.report import figures
from pipeline.report.tables import Result

Insight = Mapping[str, np.ndarray]
Point = tuple[float, float]
ALIKE = "guidance_cka_"  # and the number of the guided layer, in a curve
MOST_HEADS = 4  # that are drawn of a single network


def of_one(insight: Insight, answers: Answers, classes: Sequence[str]) -> figures.Figure:
    """All maps of one network over the pictures: saliency, SmoothGrad, Grad-CAM, attention rolled out and by head."""
    maps = {
        "saliency": insight.get("saliency"),
        "SmoothGrad": insight.get("smooth"),
        "Grad-CAM": insight.get("grad_cam"),
        "rollout": insight.get("rollout"),
        **{f"head {head + 1}": insight["attention"][:, head] for head in range(_heads(insight))},
    }
    drawn = {name: _over(insight["pictures"], each) for name, each in maps.items() if each is not None}
    captions = {"picture": [_said(answers, row, classes) for row in insight["rows"]]}
    return figures.contact_sheet({"picture": insight["pictures"], **drawn}, _names(insight, answers, classes), captions)


def saliency(insights: Mapping[str, Insight], answers: Mapping[str, Answers], classes: Sequence[str]) -> figures.Figure:
    """Pictures x networks, the saliency of each, as in Hu, Sun and Zhang's figure 1."""
    return _side_by_side(insights, answers, classes, lambda insight: figures.heat(insight["saliency"]))


def attention(insights: Mapping[str, Insight], answers: Mapping[str, Answers], classes: Sequence[str]) -> figures.Figure | None:
    """Pictures x networks, what the class token takes in the last layer, as in Lee et al.'s figure 5; None without any."""
    having = {network: insight for network, insight in insights.items() if "attention" in insight}
    if not having:
        return None
    return _side_by_side(having, answers, classes, lambda insight: _over(insight["pictures"], insight["attention"].mean(1)))


def mistakes(
    insights: Mapping[str, Insight], answers: Mapping[str, Answers], classes: Sequence[str], *, count: int = 8
) -> figures.Figure:
    """A row per network: its most confident mistakes, with what it said and what was right."""
    nothing = np.full((1, 1, 1), 255, np.uint8)
    pictures: dict[str, list[np.ndarray]] = {str(place + 1): [] for place in range(count)}
    captions: dict[str, list[str]] = {place: [] for place in pictures}
    for network, insight in insights.items():
        for place in range(count):
            there = place < len(insight["mistakes"])
            row = insight["mistakes"][place] if there else 0
            told = f"{_said(answers[network], row, classes)}\nis {classes[answers[network].labels[row]][:14]}" if there else ""
            pictures[str(place + 1)].append(insight["mistaken"][place] if there else nothing)
            captions[str(place + 1)].append(told)
    return figures.contact_sheet(pictures, [_title(network) for network in insights], captions)


def profile(insights: Mapping[str, Insight], key: str) -> dict[str, list[float]]:
    """The numbers by layer of each network, of several a layer the first; an empty list for a network without."""
    first = {name: insight[key].reshape(len(insight[key]), -1)[:, 0] for name, insight in insights.items() if key in insight}
    return {name: first[name][np.isfinite(first[name])].tolist() if name in first else [] for name in insights}


def likeness(insights: Mapping[str, Insight], teacher: str) -> dict[str, np.ndarray]:
    """CKA of each student's layers (rows) with the teacher's (columns), over the same pictures."""
    reference = insights[teacher]["gram"]
    return {
        network: np.array([[similarity.cka(layer, wanted) for wanted in reference] for layer in insight["gram"]])
        for network, insight in insights.items()
        if network != teacher
    }


def likeness_by_epoch(groups: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, list[Point]]]:
    """By guided layer, then by network: CKA with the teacher after every epoch, the mean over seeds; empty without any."""
    guided = {network: results for network, results in groups.items() if ALIKE + "1" in results[0].curve[0]}
    layers = max((sum(key.startswith(ALIKE) for key in results[0].curve[0]) for results in guided.values()), default=0)
    return {
        f"guided layer {layer}": {
            network: [_mean_point(rows, f"{ALIKE}{layer}") for rows in zip(*(result.curve for result in results), strict=False)]
            for network, results in guided.items()
            if f"{ALIKE}{layer}" in results[0].curve[0]
        }
        for layer in range(1, layers + 1)
    }


def last_guided_epoch(curve: Sequence[Mapping[str, float]]) -> float | None:
    """Where guidance ended before the training did; None where it did not."""
    guided = [row["epoch"] for row in curve if row["beta"]]
    return guided[-1] if guided and guided[-1] < curve[-1]["epoch"] else None


def _mean_point(rows: Sequence[Mapping[str, float]], key: str) -> Point:
    return rows[0]["epoch"], float(np.mean([row[key] for row in rows]))


def _side_by_side(
    insights: Mapping[str, Insight],
    answers: Mapping[str, Answers],
    classes: Sequence[str],
    draw: Callable[[Insight], np.ndarray],
) -> figures.Figure:
    first = next(iter(insights))
    columns = {"picture": insights[first]["pictures"], **{_title(name): draw(each) for name, each in insights.items()}}
    captions: dict[str, Any] = {
        _title(network): [_said(answers[network], row, classes) for row in insight["rows"]]
        for network, insight in insights.items()
    }
    return figures.contact_sheet(columns, _names(insights[first], answers[first], classes), captions)


def _over(pictures: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Maps (B, h, w) as colours, laid over the pictures (B, H, W, C) where they are coarser than these."""
    colours = figures.heat(maps)
    if colours.shape[1:3] == pictures.shape[1:3]:
        return colours
    rows, columns = (np.arange(pictures.shape[1 + axis]) * maps.shape[1 + axis] // pictures.shape[1 + axis] for axis in (0, 1))
    grey = pictures.mean(3, keepdims=True)
    return (0.4 * grey + 0.6 * colours[:, rows][:, :, columns]).round().astype(np.uint8)


def _heads(insight: Insight) -> int:
    return min(MOST_HEADS, insight["attention"].shape[1]) if "attention" in insight else 0


def _names(insight: Insight, answers: Answers, classes: Sequence[str]) -> list[str]:
    return [classes[answers.labels[row]] for row in insight["rows"]]


def _said(answers: Answers, row: int, classes: Sequence[str]) -> str:
    return f"{classes[answers.predicted[row]][:14]} {100 * answers.confidence[row]:.0f} %"


def _title(network: str) -> str:
    return network.replace("/", "\n").replace("-", "\n")
