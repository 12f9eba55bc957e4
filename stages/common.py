"""What all stages share: where things lie, and how a stage ends."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from pipeline.config import UserError

PREPARED = Path("data/prepared")
MODELS = Path("models")
RESULTS = Path("results")
FEATURES = Path("features")
SEARCH = Path("search")
REPORT = Path("report")


def run(main: Callable[[], None]) -> None:
    """Run a stage: what a person can put right is one line, an interruption is one line, our own mistakes are traces.

    An interrupted stage must not exit with 0, or DVC would take its outs for complete. To be terminated, as by a cluster's
    scheduler, is to be interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_args, **_kwargs: str(message)
    try:
        main()
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)


def place(root: Path, kind: str, name: str, seed: int) -> Path:
    """models/<kind>/<name>/<seed>, results/<kind>/<name>/<seed>."""
    return root / kind / name / str(seed)
