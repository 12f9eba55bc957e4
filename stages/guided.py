"""Train a student with a teacher: python -m stages.guided STUDENT GUIDANCE SEED."""

import argparse

from pipeline import config
from pipeline.training.checkpoint import load_model
from stages import common, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("guidance")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()

    experiment, network, guidance, recipe, cluster, track = config.load(
        "experiment", f"students.{args.student}", f"guidance.{args.guidance}", "training.student", "cluster", "tracking"
    )
    teacher = load_model(common.place(common.MODELS, "teacher", experiment.teacher, args.seed), made_by="teacher")
    training.train(
        "guided",
        f"{args.student}-{args.guidance}",
        args.seed,
        network,
        recipe,
        cluster=cluster,
        track=track,
        guidance=guidance,
        teacher=teacher,
    )


if __name__ == "__main__":
    common.run(main)
