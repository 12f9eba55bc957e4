"""Store a teacher's maps of the training pictures, where a guidance is offline: python -m stages.features GUIDANCE SEED."""

import argparse

from pipeline import config, files
from stages import common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("guidance")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    make(args.guidance, args.seed)


def make(name: str, seed: int) -> None:
    """Write features/<guidance>/<seed>; a guidance that needs none gets a note that says so."""
    experiment, guidance, recipe, cluster = config.load("experiment", f"guidance.{name}", "training.student", "cluster")
    folder = common.FEATURES / name / str(seed)
    if not guidance.offline:
        files.write_json(folder / "about.json", {"offline": False})
        return
    from pipeline import offline, runs  # these take seconds
    from pipeline.training import engine
    from pipeline.training.checkpoint import load_model

    teacher = load_model(common.place(common.MODELS, "teacher", experiment.teacher, seed), made_by="teacher")
    data = runs.data(common.PREPARED)
    offline.store(folder, data, teacher, guidance, recipe, engine.device_of(cluster.use_gpu))
    print(f"{folder}: the maps of {len(data.train.labels)} pictures")


if __name__ == "__main__":
    common.run(main)
