"""Which part of a cluster each worker of a training gets, and how many trainings have room at once. Plain arithmetic.

A node is what Ray says of it: {"CPU": 8.0, "GPU": 2.0, ...}.
"""

from collections.abc import Sequence

from pipeline.config import Cluster, UserError

Resources = dict[str, float]


def worker(cluster: Cluster, nodes: Sequence[Resources], *, alone: bool) -> Resources:
    """What one worker is given; alone: no other training shares these nodes.

    Raises UserError where so much, for the least number of workers, is nowhere, so that they would wait for ever.
    """
    gpus = (cluster.gpus_per_worker or 1) if _on_gpus(cluster, nodes) else 0
    cpus = cluster.cpus_per_worker or _cpus(cluster, nodes, gpus, alone=alone)
    each = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    if (room := workers_with_room(nodes, each)) < cluster.sizes[0]:
        key = "min_workers" if cluster.min_workers else "num_workers"
        raise UserError(
            f"cluster.{key} {cluster.sizes[0]} with {words(each)} each would wait for ever: Ray has {_sum(nodes)} "
            f"on {_count(len(nodes), 'node')}, room for {room}; lower it, cluster.cpus_per_worker or cluster.gpus_per_worker"
        )
    return each


def workers_with_room(nodes: Sequence[Resources], each: Resources) -> int:
    """How many workers fit, none of them over two nodes."""
    slack = 1e-6  # ten times 0.1 is one
    return sum(min(int(node.get(name, 0) / share + slack) for name, share in each.items()) for node in nodes)


def trainings_at_once(cluster: Cluster, nodes: Sequence[Resources], each: Resources) -> int:
    """How many trainings fit beside each other, at least one."""
    return max(1, workers_with_room(nodes, each) // cluster.sizes[-1])


def choice(cluster: Cluster, nodes: Sequence[Resources], each: Resources) -> str:
    """What was chosen, in a line."""
    sizes = cluster.sizes
    workers = _count(sizes[0], "worker") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} workers"
    at_once = trainings_at_once(cluster, nodes, each)
    return (
        f"{workers} with {words(each)} each ({cluster.placement}); "
        f"Ray has {_sum(nodes)} on {_count(len(nodes), 'node')}, room for {at_once} at once"
    )


def lack(cluster: Cluster, nodes: Sequence[Resources], each: Resources) -> str:
    """Why a training cannot go on, where nodes were lost and too little is left for its workers; else empty."""
    if workers_with_room(nodes, each) >= cluster.sizes[0]:
        return ""
    wanted = f"{_count(cluster.sizes[0], 'worker')} with {words(each)} each"
    return f"waits for a node: Ray has {_sum(nodes)} on {_count(len(nodes), 'node')} left, too little for {wanted}"


def words(resources: Resources) -> str:
    """2 CPU and 0.5 GPU."""
    return " and ".join(f"{share:g} {name}" for name, share in resources.items())


def _on_gpus(cluster: Cluster, nodes: Sequence[Resources]) -> bool:
    return any(node.get("GPU") for node in nodes) if cluster.use_gpu == "auto" else cluster.use_gpu


def _cpus(cluster: Cluster, nodes: Sequence[Resources], gpus: float, *, alone: bool) -> int:
    """All CPUs shared out where a training is alone; else those that go with its GPUs, and one where there are none."""
    if alone:
        return max(1, int(_total(nodes, "CPU")) // cluster.sizes[-1])
    beside = [node["CPU"] / node["GPU"] for node in nodes if node.get("GPU") and node.get("CPU")]
    return max(1, int(min(beside) * gpus)) if gpus and beside else 1


def _total(nodes: Sequence[Resources], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)


def _sum(nodes: Sequence[Resources]) -> str:
    return words({name: _total(nodes, name) for name in ("CPU", "GPU") if name == "CPU" or _total(nodes, name)})


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
