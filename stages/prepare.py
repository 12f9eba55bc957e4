"""A data set in the layout people have it in -> train, validation and test split and the data card."""

from pipeline import config
from pipeline.data import prepared, sources
from pipeline.data.prepare import prepare
from stages import common


def main() -> None:
    (data,) = config.load("data")
    card = prepare(sources.read(data), data, common.PREPARED)
    counts = ", ".join(f"{name} {count}" for name, count in card["counts"].items())
    print(f"{len(card['classes'])} classes, {counts} pictures, {prepared.describe(card)}")
    for line in card["problems"]:
        print(f"warning: {line}")


if __name__ == "__main__":
    common.run(main)
