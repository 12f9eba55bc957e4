"""Train every network of the experiment that is out of date, as many at once as Ray has room for: python -m stages.train_all.

`dvc repro` runs one stage at a time. After this it finds each training finished, by its identity, and only records it.
"""

import argparse
import sys
from collections.abc import Collection
from functools import partial

from pipeline import config, distributed, scheduling
from pipeline.config import Experiment, UserError
from pipeline.together import Skipped, Task, together
from stages import common, features, guided, teacher, unguided


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    experiment, guidance, cluster = config.load("experiment", "guidance", "cluster")
    if cluster.num_workers == 0:
        raise UserError("cluster.num_workers 0 trains without Ray, one network at a time; train_all needs at least 1")
    tasks = networks(experiment, offline=[name for name in experiment.guidance if guidance[name].offline])
    with distributed.ray_session():
        nodes = distributed.nodes_of_ray()
        each = scheduling.worker(cluster, nodes, alone=False)
        print(f"{len(tasks)} networks: {scheduling.choice(cluster, nodes, each)}", flush=True)
        failed = together(tasks, room=lambda: scheduling.trainings_at_once(cluster, distributed.nodes_of_ray(), each))
    for name, error in sorted(failed.items()):
        print(f"failed: {name}: {_one_line(error)}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(tasks)} networks failed; the others are trained, `dvc repro` records them")
    print(f"all {len(tasks)} networks are trained; `dvc repro` records them")


def networks(experiment: Experiment, *, offline: Collection[str] = ()) -> dict[str, Task]:
    """The training of each network by its name; a guided one waits for the teacher of its seed, or for its stored maps.

    offline: the guidances that have those.
    """
    tasks = {}
    for seed in experiment.seeds:
        taught_by = f"teacher/{experiment.teacher}/{seed}"
        tasks[taught_by] = Task(partial(teacher.train, seed))
        for student in experiment.unguided:
            tasks[f"unguided/{student}/{seed}"] = Task(partial(unguided.train, student, seed))
        for student in experiment.guided:
            for guidance in experiment.guidance:
                stored = f"features/{guidance}/{seed}"
                if guidance in offline:
                    tasks[stored] = Task(partial(features.make, guidance, seed), after=taught_by)
                action = partial(guided.train, student, guidance, seed)
                tasks[f"guided/{student}-{guidance}/{seed}"] = Task(action, after=stored if guidance in offline else taught_by)
    return tasks


def _one_line(error: BaseException) -> str:
    known = isinstance(error, UserError | Skipped)
    return " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"


if __name__ == "__main__":
    common.run(main)
