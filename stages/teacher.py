"""Train the CNN teacher: python -m stages.teacher SEED."""

import argparse

from pipeline import config
from stages import common, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    train(parser.parse_args().seed)


def train(seed: int) -> None:
    """Train it, and write its outs."""
    experiment, teachers, recipe, cluster, track = config.load(
        "experiment", "teachers", "training.teacher", "cluster", "tracking"
    )
    name = experiment.teacher
    training.train("teacher", name, seed, teachers[name], recipe, cluster=cluster, track=track)


if __name__ == "__main__":
    common.run(main)
