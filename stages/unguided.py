"""Train a student without a teacher: python -m stages.unguided STUDENT SEED."""

import argparse

from pipeline import config
from stages import common, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    training.train(plan(args.student, args.seed))


def plan(student: str, seed: int) -> training.Plan:
    """The student, alone."""
    network, recipe, cluster, track = config.load(f"students.{student}", "training.student", "cluster", "tracking")
    return training.plan("unguided", student, seed, network, recipe, cluster=cluster, track=track)


if __name__ == "__main__":
    common.run(main)
