"""A Ray of several nodes on this machine, in a process of its own: python tests/nodes.py CPUS CPUS ...

It prints its address, and then does what the lines on its standard input say: `remove` kills the node on which most
workers of Ray Train run, `add CPUS [NAME=VALUE ...]` gives it one more node, with that in its environment. Each is
answered with a line. The head has no CPUs.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def serve(cpus: list[int]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=count) for count in cpus]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.startswith("add"):
            _, count, *variables = line.split()
            nodes.append(cluster.add_node(num_cpus=int(count), env_vars=dict(each.split("=", 1) for each in variables)))
        else:
            nodes.remove(busiest := max(nodes, key=_workers))
            cluster.remove_node(busiest, allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


def _workers(node: Any) -> int:
    """How many workers of Ray Train are on a node."""
    import psutil

    raylet = node.all_processes["raylet"][0].process.pid
    return sum("RayTrainWorker" in each.name() for each in psutil.Process(raylet).children(recursive=True))


class Nodes:
    """That process, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.address = process, process.stdout.readline().strip()

    def say(self, line: str) -> None:
        """Have something done, and wait for it."""
        print(line, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "done\n"


@contextmanager
def nodes(*cpus: int) -> Iterator[Nodes]:
    """A cluster with a node of so many CPUs each, for this block."""
    command = [sys.executable, __file__, *map(str, cpus)]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "cwd": tempfile.gettempdir(),  # where no code of ours is
    }
    with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, text=True, **pipes) as process:
        try:
            yield Nodes(process)
        finally:
            process.stdin.close()
            process.wait(60)


if __name__ == "__main__":
    serve([int(count) for count in sys.argv[1:]])
