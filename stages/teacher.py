"""Train the CNN teacher: python -m stages.teacher SEED."""

import argparse

from pipeline import config
from stages import common, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    training.train(plan(parser.parse_args().seed))


def plan(seed: int) -> training.Plan:
    """The teacher of that seed."""
    experiment, teachers, recipe, cluster, track = config.load(
        "experiment", "teachers", "training.teacher", "cluster", "tracking"
    )
    name = experiment.teacher
    return training.plan("teacher", name, seed, teachers[name], recipe, cluster=cluster, track=track)


if __name__ == "__main__":
    common.run(main)
