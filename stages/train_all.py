"""Train every network of the experiment that is out of date, as many at once as Ray has room for: python -m stages.train_all.

`dvc repro` runs one stage at a time. After this it finds each training finished, by its identity, and only records it.
"""

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from pipeline import config, distributed, scheduling
from pipeline.config import Experiment, UserError
from pipeline.together import Skipped, Task, together
from stages import common, features, guided, teacher, training, unguided
from stages.training import Plan


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    experiment, guidance, cluster = config.load("experiment", "guidance", "cluster")
    if cluster.num_workers == 0:
        raise UserError("cluster.num_workers 0 trains without Ray, one network at a time; train_all needs at least 1")
    late = out_of_date(networks(experiment, offline=[name for name in experiment.guidance if guidance[name].offline]))
    if not late:
        print("all networks are trained; `dvc repro` records them")
        return
    with distributed.ray_session():
        nodes = distributed.nodes_of_ray()
        each = scheduling.worker(cluster, nodes, alone=False)
        print(f"{len(late)} networks: {scheduling.choice(cluster, nodes, each)}", flush=True)
        tasks = {name: Task(late[name].train, late[name].after if late[name].after in late else None) for name in late}
        failed = together(tasks, room=lambda: scheduling.trainings_at_once(cluster, distributed.nodes_of_ray(), each))
    for name, error in sorted(failed.items()):
        print(f"failed: {name}: {_one_line(error)}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(tasks)} networks failed; the others are trained, `dvc repro` records them")
    print(f"all {len(tasks)} networks are trained; `dvc repro` records them")


@dataclass(frozen=True)
class Network:
    """A network of the DAG, which can be planned once the one that it needs, if any, is trained."""

    plan: Callable[[], Plan]
    after: str | None = None

    def is_done(self) -> bool:
        try:
            return self.plan().is_done()
        except UserError:  # told when it is trained
            return False

    def train(self) -> None:
        training.train(self.plan())


@dataclass(frozen=True)
class Maps:
    """What a teacher's maps of the training pictures are stored for: an offline guidance."""

    guidance: str
    seed: int
    after: str

    def is_done(self) -> bool:
        return features.is_done(self.guidance, self.seed)

    def train(self) -> None:
        features.make(self.guidance, self.seed)


def networks(experiment: Experiment, *, offline: Collection[str] = ()) -> dict[str, Network | Maps]:
    """All by their names; a guided one comes after the teacher of its seed, or after its maps where guidance is offline."""
    found: dict[str, Network | Maps] = {}
    for seed in experiment.seeds:
        taught_by = f"teacher/{experiment.teacher}/{seed}"
        found[taught_by] = Network(partial(teacher.plan, seed))
        for student in experiment.unguided:
            found[f"unguided/{student}/{seed}"] = Network(partial(unguided.plan, student, seed))
        for student in experiment.guided:
            for guidance in experiment.guidance:
                needed = f"features/{guidance}/{seed}" if guidance in offline else taught_by
                if guidance in offline:
                    found[needed] = Maps(guidance, seed, after=taught_by)
                plan = partial(guided.plan, student, guidance, seed)
                found[f"guided/{student}-{guidance}/{seed}"] = Network(plan, after=needed)
    return found


def out_of_date(found: dict[str, Network | Maps]) -> dict[str, Network | Maps]:
    """Those that are not trained, and those that need one of them; the others are named."""
    late: dict[str, Network | Maps] = {}
    for name, network in found.items():
        if network.after in late or not network.is_done():
            late[name] = network
        else:
            print(f"{name} is up to date")
    return late


def _one_line(error: BaseException) -> str:
    known = isinstance(error, UserError | Skipped)
    return " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"


if __name__ == "__main__":
    common.run(main)
