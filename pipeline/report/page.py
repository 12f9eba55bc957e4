"""The report: one self-contained HTML page over all evaluations."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from pipeline.config import Published
from pipeline.report import evidence, explanations, figures, tables
from pipeline.report.evidence import Pair
from pipeline.report.tables import Result


def render(
    results: Sequence[Result],
    card: dict[str, Any],
    contact_sheet: figures.Figure,
    search: str = "",
    papers: Sequence[Published] = (),
) -> str:
    """The page for these results, all over the same prepared data; the sheet shows what students were trained on.

    search: the section on the search for settings, as HTML. papers: whose own numbers stand beside ours.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters |= FILTERS
    groups, rows = tables.by_network(results), tables.comparison(results)
    compared = _compared(results, rows)
    return environment.get_template("page.html").render(
        rows=rows,
        answer=evidence.answer(rows, compared),
        pairs=compared,
        published=tables.beside_published(rows, papers, card["source"]),
        papers=papers,
        level=tables.common_level(results),
        weights=" or ".join(sorted({tables.weights(result.config) for result in results})),
        sort=Markup((Path(__file__).parent / "sort.js").read_text()),
        card=card,
        facts=tables.data_facts(card),
        machine=" and ".join(sorted({str(result.training["hardware"]) for result in results})),
        seeds=sorted({result.seed for result in results}),
        test_pictures=card["counts"]["test"],
        curves=Markup(figures.svg(_curves(groups, "val_accuracy", "validation accuracy"))),
        losses=Markup(figures.svg(_curves(groups, "val_loss", "validation loss (nats)"))),
        confusions=[Markup(figures.svg(_confusion(network, group, card))) for network, group in groups.items()],
        reliability=Markup(figures.svg(figures.reliability(_bins(groups)))),
        per_class=_by_class(results, card["classes"]),
        corrupted=_corrupted(results),
        corrupted_pictures=results[0].corrupted[0]["pictures"],
        alike=_alike(groups),
        explained=_explained({network: group[0] for network, group in groups.items()}, card["classes"]),
        contact_sheet=Markup(figures.svg(contact_sheet)),
        search=Markup(search),
        settings=[_settings(network, group[0]) for network, group in groups.items()],
        versions=results[0].config["espalier"]["versions"],
    )


def markdown(results: Sequence[Result]) -> str:
    """The comparison as a short Markdown table, for a README or a message."""
    lines = ["| network | test accuracy | parameters | MACs | training time |", "|---|---|---|---|---|"]
    for row in tables.comparison(results):
        spread = row["test_accuracy_spread"]
        accuracy = f"{_percent(row['test_accuracy'])}{'' if spread is None else ' ± ' + _percent(spread)} %"
        size = f"{_count(row['parameters'])} | {_count(row['macs'])}"
        lines.append(f"| {row['network']} | {accuracy} | {size} | {_duration(row['train_seconds'])} |")
    machine = " and ".join(sorted({str(result.training["hardware"]) for result in results}))
    seeds = sorted({result.seed for result in results})
    pictures = int(results[0].confusion.sum())
    return "\n".join([*lines, "", f"{len(seeds)} seed(s), {pictures} test pictures, {machine}.", ""])


def pairs(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The paired comparisons as a table."""
    return [{**asdict(pair), "verdict": pair.verdict} for pair in _compared(results, tables.comparison(results))]


def _compared(results: Sequence[Result], rows: Sequence[dict[str, Any]]) -> list[Pair]:
    answers = {
        network: {result.seed: result.answers for result in group} for network, group in tables.by_network(results).items()
    }
    return evidence.compare(answers, evidence.of_interest(rows))


def _bins(groups: dict[str, list[Result]]) -> dict[str, np.ndarray]:
    return {network: sum(result.answers.bins() for result in group) for network, group in groups.items()}  # type: ignore[misc]


def _by_class(results: Sequence[Result], classes: list[str]) -> dict[str, dict[str, float | None]]:
    """F1 by class, then by network."""
    table: dict[str, dict[str, float | None]] = {name: {} for name in classes}
    for row in tables.per_class(results, classes):
        table[row["class"]][row["network"]] = row["f1"]
    return table


def _corrupted(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Accuracy by network, then by kind of corruption: the mean over strengths."""
    table: dict[str, dict[str, list[float]]] = {}
    for row in tables.corrupted(results):
        table.setdefault(row["network"], {}).setdefault(row["corruption"], []).append(row["accuracy"])
    return {network: {kind: sum(found) / len(found) for kind, found in kinds.items()} for network, kinds in table.items()}


def _explained(results: dict[str, Result], classes: list[str]) -> dict[str, Any]:
    """The figures that explain, of the first seed of each network; None where no network has what one shows."""
    insights = {network: result.insight for network, result in results.items()}
    answers = {network: result.answers for network, result in results.items()}
    teacher = next(iter(results))
    attention = explanations.attention(insights, answers, classes)
    temperatures = explanations.profile(insights, "temperature")
    learned = {name: [] if set(line) == {1.0} else line for name, line in temperatures.items()}
    distances, divergences = (explanations.profile(insights, key) for key in ("distance", "divergence"))
    likeness = explanations.likeness(insights, teacher)
    return {
        "saliency": figures.image(explanations.saliency(insights, answers, classes)),
        "attention": attention and figures.image(attention),
        "mistakes": figures.image(explanations.mistakes(insights, answers, classes)),
        "temperature": _profile(learned, "temperature, in sqrt(head width)", reference=1.0),
        "divergence": _profile(divergences, "divergence from uniform (nats)"),
        "distance": _profile(distances, "attention distance (pixels)"),
        "teacher": teacher,
        "likeness": likeness
        and Markup(figures.svg(figures.table_of_shades(likeness, x=f"layer of {teacher}", y="layer of the student"))),
    }


def _alike(groups: dict[str, list[Result]]) -> Markup | None:
    """Likeness to the teacher by epoch, of the guided students; None where there are none."""
    panels = explanations.likeness_by_epoch(groups)
    if not panels:
        return None
    ends = {network: explanations.last_guided_epoch(groups[network][0].curve) for lines in panels.values() for network in lines}
    drawn = figures.courses(panels, ends, networks=list(groups), x="epoch", y="CKA with the teacher")
    return Markup(figures.svg(drawn))


def _profile(lines: dict[str, list[float]], label: str, *, reference: float | None = None) -> Markup | None:
    return (
        Markup(figures.svg(figures.profiles(lines, x="layer", y=label, reference=reference))) if any(lines.values()) else None
    )


def _curves(groups: dict[str, list[Result]], key: str, label: str) -> figures.Figure:
    points = {
        network: [[(row["epoch"], row[key]) for row in result.curve] for result in group] for network, group in groups.items()
    }
    return figures.learning_curves(points, x="epoch", y=label, log=key == "val_loss")


def _confusion(network: str, group: list[Result], card: dict[str, Any]) -> figures.Figure:
    return figures.confusion(sum(result.confusion for result in group), card["classes"], title=network)  # type: ignore[arg-type]


def _settings(network: str, result: Result) -> dict[str, Any]:
    about = result.config["espalier"]
    shown = {key: about[key] for key in ("network", "training", "guidance") if about[key]}
    return {"network": network, "identity": about["identity"], "text": json.dumps(shown, indent=2)}


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _signed_percent(value: float | None) -> str:
    return "–" if value is None else f"{evidence.signed(100 * value, 0)} %"


def _count(value: float) -> str:
    """1,234 as it is, 2.76 M and 189.5 M short."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.{2 if unit == 'G' else 1}f} {unit}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


FILTERS = {
    "percent": _percent,
    "signed_percent": _signed_percent,
    "count": _count,
    "duration": _duration,
    "signed": evidence.signed,
}
