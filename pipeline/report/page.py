"""The report: one self-contained HTML page over all evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from pipeline.report import figures, tables
from pipeline.report.tables import Result


def render(results: Sequence[Result], card: dict[str, Any], contact_sheet: figures.Figure, search: str = "") -> str:
    """The page for these results, all over the same prepared data; the sheet shows what students were trained on.

    search: the section on the search for settings, as HTML.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters |= FILTERS
    groups = tables.by_network(results)
    return environment.get_template("page.html").render(
        rows=tables.comparison(results),
        card=card,
        facts=tables.data_facts(card),
        machine=" and ".join(sorted({str(result.training["hardware"]) for result in results})),
        seeds=sorted({result.seed for result in results}),
        test_pictures=card["counts"]["test"],
        curves=Markup(figures.svg(_curves(groups, "val_accuracy", "validation accuracy"))),
        losses=Markup(figures.svg(_curves(groups, "val_loss", "validation loss (nats)"))),
        confusions=[Markup(figures.svg(_confusion(network, group, card))) for network, group in groups.items()],
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
    return "–" if value is None else f"{100 * value:+.0f} %"


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


FILTERS = {"percent": _percent, "signed_percent": _signed_percent, "count": _count, "duration": _duration}
