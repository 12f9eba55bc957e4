"""A driver of one training, to be run beside a test: python -m tests.driver IDENTITY SCRATCH EPOCHS {cluster settings}.

It prints a line per epoch, what was chosen, and what a person must put right.
"""

import json
import os
import subprocess
import sys
from typing import Any

from tests.nodes import ENVIRONMENT


def start(identity: str, scratch: Any, *, epochs: int, address: str, **where: Any) -> "subprocess.Popen[str]":
    """This module in a process of its own, on the cluster at the address."""
    command = [sys.executable, "-m", "tests.driver", identity, str(scratch), str(epochs), json.dumps(where)]
    environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": address}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def main(identity: str, scratch: str, epochs: str, where: str) -> None:
    from pipeline import distributed
    from pipeline.config import UserError
    from tests.conftest import cluster, job, recipe

    distributed.SECONDS_BETWEEN_RESIZES = 2  # not a minute: a test waits for it
    listener = distributed.Listener(epoch=lambda row: print("epoch", row["epoch"], flush=True), note=print)
    made = cluster(**{"cpus_per_worker": 1, "scratch": scratch, **json.loads(where)})
    try:
        distributed.fit(job(training=recipe(duration=f"{epochs} epochs")), made, identity=identity, listener=listener)
    except UserError as error:
        print("error:", error)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
