"""Train a student with a teacher: python -m stages.guided STUDENT GUIDANCE SEED."""

import argparse

from pipeline import config, offline, runs
from pipeline.training.checkpoint import load_model
from stages import common, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("guidance")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    training.train(plan(args.student, args.guidance, args.seed))


def plan(student: str, guidance: str, seed: int) -> training.Plan:
    """The student under the teacher of the same seed."""
    experiment, network, settings, recipe, cluster, track = config.load(
        "experiment", f"students.{student}", f"guidance.{guidance}", "training.student", "cluster", "tracking"
    )
    teacher = load_model(common.place(common.MODELS, "teacher", experiment.teacher, seed), made_by="teacher")
    stored = None
    if settings.offline:
        folder = common.FEATURES / guidance / str(seed)
        stored = offline.load(folder, runs.data(common.PREPARED), teacher, settings, recipe)
    return training.plan(
        "guided",
        f"{student}-{guidance}",
        seed,
        network,
        recipe,
        cluster=cluster,
        track=track,
        guidance=settings,
        teacher=teacher,
        features=stored,
    )


if __name__ == "__main__":
    common.run(main)
