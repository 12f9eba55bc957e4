"""A data set in the layout people have it in -> train, validation and test split and the data card."""

from pipeline import config
from pipeline.data import sources
from pipeline.data.prepare import prepare
from stages import common


def main() -> None:
    (data,) = config.load("data")
    card = prepare(sources.read(data), data, common.PREPARED)
    counts = ", ".join(f"{name} {count}" for name, count in card["counts"].items())
    print(f"{len(card['classes'])} classes, {counts} pictures of {'x'.join(map(str, card['image_shape']))}")
    for names in card["duplicates"][:10]:
        print(f"warning: the same picture is in several splits: {'; '.join(names)}")
    if (more := len(card["duplicates"]) - 10) > 0:
        print(f"warning: and {more} more, see card.json")
    for entry in card["unreadable"]:
        print(f"warning: skipped {entry['name']}: {entry['reason']}")


if __name__ == "__main__":
    common.run(main)
