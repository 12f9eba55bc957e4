"""Store a teacher's maps of the training pictures, where a guidance is offline: python -m stages.features GUIDANCE SEED."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline import config, files
from pipeline.config import Guidance, Training, UserError
from stages import common

if TYPE_CHECKING:
    from pipeline.runs import Data
    from pipeline.training.checkpoint import Model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("guidance")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    make(args.guidance, args.seed)


def make(name: str, seed: int) -> None:
    """Write features/<guidance>/<seed>; a guidance that needs none gets a note that says so."""
    (guidance,) = config.load(f"guidance.{name}")
    folder = common.FEATURES / name / str(seed)
    if not guidance.offline:
        files.write_json(folder / "about.json", {"offline": False})
        return
    from pipeline import offline  # this takes seconds
    from pipeline.training import engine

    data, *maps = _parts(name, seed)
    (cluster,) = config.load("cluster")
    offline.store(folder, data, *maps, engine.device_of(cluster.use_gpu))
    print(f"{folder}: the maps of {len(data.train.labels)} pictures")


def is_done(name: str, seed: int) -> bool:
    """Whether the maps are there, and of this teacher."""
    from pipeline import offline

    try:
        offline.load(common.FEATURES / name / str(seed), *_parts(name, seed))
    except UserError:
        return False
    return True


def _parts(name: str, seed: int) -> tuple[Data, Model, Guidance, Training]:
    """What the maps are made of."""
    from pipeline import runs
    from pipeline.training.checkpoint import load_model

    experiment, guidance, recipe = config.load("experiment", f"guidance.{name}", "training.student")
    teacher = load_model(common.place(common.MODELS, "teacher", experiment.teacher, seed), made_by="teacher")
    return runs.data(common.PREPARED), teacher, guidance, recipe


if __name__ == "__main__":
    common.run(main)
