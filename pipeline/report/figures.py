"""Figures, as matplotlib objects and as SVG that is the same for the same numbers."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pipeline import files
from pipeline.config import UserError

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]  # Okabe and Ito 2008
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#888888",
    "axes.prop_cycle": cycler(color=COLOURS),
    "svg.hashsalt": "espalier",
    "text.parse_math": False,  # a class may be named "$"
}
HALO: dict[str, Any] = {"bbox": {"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75, "linewidth": 0}}
LINES = {"teacher": ":", "unguided": "--", "guided": "-"}
HEAT = "viridis"  # told apart by colour-blind people too
MOST_NUMBERED_CLASSES = 12
MOST_NAMED_CLASSES = 30


def learning_curves(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], *, x: str, y: str, log: bool = False
) -> Figure:
    """One line per network: the mean over its seeds, with the range between them shaded.

    curves: "kind/name" -> one list of (x, y) per seed.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for network, seeds in curves.items():
            xs, ys = np.array(seeds[0])[:, 0], np.array([[point[1] for point in seed] for seed in seeds])
            (line,) = axes.plot(xs, ys.mean(0), LINES.get(network.split("/")[0], "-"), linewidth=1.6, label=network)
            if len(seeds) > 1:
                axes.fill_between(xs, ys.min(0), ys.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
        if log:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.01)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def profiles(lines: Mapping[str, Sequence[float]], *, x: str, y: str, reference: float | None = None) -> Figure:
    """One line per network over its layers, of the colour that `learning_curves` gives it; none for an empty one.

    reference: what the value would be without what is shown.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for index, (network, values) in enumerate(lines.items()):
            if values:
                style, colour = LINES[network.split("/")[0]], COLOURS[index % len(COLOURS)]
                axes.plot(range(1, len(values) + 1), values, style, color=colour, marker="o", markersize=3.5, label=network)
        if reference is not None:
            axes.axhline(reference, color="#888888", linewidth=1, linestyle=(0, (1, 2)))
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def courses(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    ends: Mapping[str, float | None],
    *,
    networks: Sequence[str],
    x: str,
    y: str,
) -> Figure:
    """A panel beside the other, each with lines of (x, y) by network, of the colours of `learning_curves`.

    networks: all that there are, in their order. ends: where on a network's lines a dot stands.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 3.4), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, lines) in zip(grid, panels.items(), strict=True):
            for network, points in lines.items():
                colour, line = COLOURS[networks.index(network) % len(COLOURS)], np.array(points)
                axes.plot(*line.T, color=colour, linewidth=1.6, label=network)
                axes.plot(*line[line[:, 0] == ends.get(network)].T, "o", color=colour)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel(x)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0].set_ylabel(y)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def reliability(bins: Mapping[str, np.ndarray]) -> Figure:
    """One panel per network: how often it was right against how sure it was, and below how often it was so sure.

    bins: network -> (bins, 3) pictures, sum of confidences and correct pictures.
    """
    columns = min(4, len(bins))
    rows = -(-len(bins) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.85 * columns, 3.0 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (network, counts) in zip(grid.flat, bins.items(), strict=False):
            pictures, confidence, correct = counts[counts[:, 0] > 0].T
            axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=(0, (1, 2)))
            axes.vlines(confidence / pictures, 0, pictures / pictures.sum(), color="#bbbbbb", linewidth=5)
            axes.plot(confidence / pictures, correct / pictures, marker="o", markersize=3.5)
            axes.set_title(network, fontsize=8)
            axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        for axes in list(grid.flat)[len(bins) :]:
            axes.set_axis_off()
        figure.supxlabel("confidence", fontsize=9)
        figure.supylabel("share of them correct (grey: share of pictures)", fontsize=9)
    return figure


def table_of_shades(panels: Mapping[str, np.ndarray], *, x: str, y: str) -> Figure:
    """One panel per network: a matrix (rows, columns) of numbers in [0, 1], shaded and written."""
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        height = max(len(matrix) for matrix in panels.values())
        figure = Figure(figsize=(max(4.0, 1.9 * len(panels)), 1.0 + 0.3 * height), layout="constrained")
        for axes, (network, matrix) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            axes.imshow(matrix, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
            axes.set_title(network.replace("/", "\n"), fontsize=8)
            axes.set_xticks(range(matrix.shape[1]), range(1, matrix.shape[1] + 1))
            axes.set_yticks(range(len(matrix)), range(1, len(matrix) + 1))
            for row, column in np.ndindex(matrix.shape):
                colour = "#000000" if matrix[row, column] > 0.55 else "#ffffff"
                axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=6)
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str], *, title: str) -> Figure:
    """(K, K) counts, rows are actual classes, shaded by the share of the class."""
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="actual", title=title)
        _name_classes(axes, classes)
        if len(classes) <= MOST_NUMBERED_CLASSES:
            for row, column in zip(*np.nonzero(matrix), strict=True):
                colour = "white" if shares[row, column] > 0.6 else "#333333"
                axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=7)
    return figure


def _name_classes(axes: mpl.axes.Axes, classes: Sequence[str]) -> None:
    if len(classes) > MOST_NAMED_CLASSES:
        return
    short = [_short(name) for name in classes]
    upright = max(len(name) for name in short) <= 2
    axes.set_xticks(range(len(classes)), short, rotation=0 if upright else 90, fontsize=7)
    axes.set_yticks(range(len(classes)), short, fontsize=7)


def contact_sheet(
    columns: Mapping[str, Iterable[np.ndarray]], rows: Sequence[str], captions: Mapping[str, Sequence[str]]
) -> Figure:
    """Pictures on a grid, one row each, and under some of them a caption.

    columns: title -> R pictures (H, W, C) uint8. rows: R names. captions: title -> R texts.
    """
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(1.1 * len(columns), 1.2 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for column, (title, images) in enumerate(columns.items()):
            grid[0, column].set_title(title, fontsize=8)
            for row, image in enumerate(images):
                axes = grid[row, column]
                axes.imshow(
                    image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest"
                )
                axes.set(xticks=[], yticks=[])
                axes.set_xlabel(captions.get(title, [""] * len(rows))[row], fontsize=6, labelpad=1, linespacing=1.1)
        for row, name in enumerate(rows):
            grid[row, 0].set_ylabel(_short(name), fontsize=7)
    return figure


def heat(maps: np.ndarray) -> np.ndarray:
    """Maps (..., H, W) as colours (..., H, W, 3) uint8, each from its least to its most."""
    least, most = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    scaled = (maps - least) / np.maximum(most - least, 1e-12)
    return (mpl.colormaps[HEAT](scaled)[..., :3] * 255).round().astype(np.uint8)


def _short(name: str) -> str:
    return "\n".join(line if len(line) <= 16 else f"{line[:15]}…" for line in name.split("\n"))


@dataclass(frozen=True)
class Scale:
    """An axis of parallel coordinates: what to write where, and where each line crosses it, all from 0 to 1."""

    label: str
    ticks: dict[str, float]
    places: list[float]


def parallel_coordinates(scales: Sequence[Scale], merits: Sequence[float], *, early: Sequence[bool]) -> Figure:
    """One line per trial across all scales, the darker the more merit; dashed where it was stopped early."""
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(11.4, 3.6), layout="constrained")
        axes = figure.subplots()
        ranks = np.argsort(np.argsort(merits)) / max(len(merits) - 1, 1)
        for index in np.argsort(merits):
            heights = [scale.places[index] for scale in scales]
            colour, style = mpl.colormaps["viridis_r"](0.05 + 0.95 * ranks[index]), "--" if early[index] else "-"
            axes.plot(range(len(scales)), heights, style, color=colour, linewidth=1 + ranks[index], marker="o", markersize=3)
        for place, scale in enumerate(scales):
            axes.axvline(place, color="#888888", linewidth=0.8, zorder=0)
            for text, height in scale.ticks.items():
                axes.annotate(text, (place, height), (4, 0), textcoords="offset points", fontsize=8, va="bottom", **HALO)
        axes.set_xticks(range(len(scales)), [scale.label for scale in scales])
        axes.set(yticks=[], ylim=(-0.04, 1.1), xlim=(-0.1, len(scales) - 0.6))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


def bars(shares: Mapping[str, float], *, x: str) -> Figure:
    """One horizontal bar per name, the longest above."""
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(shares)), layout="constrained")
        axes = figure.subplots()
        ordered = sorted(shares.items(), key=lambda entry: entry[1])
        drawn = axes.barh([name for name, _ in ordered], [share for _, share in ordered], color="#3b6ea5", height=0.6)
        axes.bar_label(drawn, fmt="{:.2f}", padding=3)
        axes.set(xlabel=x, xlim=(0, 1.08 * max(shares.values())), axisbelow=True)
    return figure


def message(text: str) -> Figure:
    """A line of text where a figure would be."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.6))
        figure.text(0.01, 0.4, text, color="#555555")
    return figure


def svg(figure: Figure) -> str:
    """The figure as an <svg> element to put into a page."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def image(figure: Figure) -> str:
    """The figure as the address of an <img>: a PNG of 150 dots per inch, which pictures of few pixels stay sharp in."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def write(figure: Figure, path: Path) -> None:
    """The figure as a file, in the format that its ending names. Raises UserError for another."""
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise UserError(f"{path}: its ending names no format of pictures; known: {', '.join(sorted(formats))}")
    with files.replacing(path) as aside:
        figure.savefig(aside, format=path.suffix.removeprefix("."), dpi=150)
