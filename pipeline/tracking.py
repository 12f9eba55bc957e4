"""One run in MLflow, or a silent stand-in. Only the driver writes; a tracking that fails never stops a training.

A run is found again by its identity: an interrupted training goes on with its run, and evaluate adds to it.
"""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import Tracking
from pipeline.together import InThread

logger = logging.getLogger(__name__)

SECTIONS = (
    "train_",
    "val_",
    "test_",
    "guidance_",
    "distillation_",
    "refit_",
    "cost_",
)  # val_loss is logged as val/loss: the UI has a section for each "val/"

ENVIRONMENT = {  # before MLflow is imported
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a server that is away may not hold a training up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Run:
    """A run in MLflow; without a client, or once something has failed, a silent stand-in."""

    def __init__(self, client: Any = None, run_id: str = "", ended: int | None = None) -> None:
        self._client, self._id = client, run_id
        self._ended = ended  # milliseconds, of a run that had finished: what is added to it later is no part of its duration
        self._logged: set[int] = set()  # images seen at the epochs that it has
        self._lock = threading.Lock()
        self._try(self._resume)

    @property
    def id(self) -> str:
        """MLflow's own name of it; empty where nothing is kept."""
        return self._id if self._client else ""

    def epoch(self, row: dict[str, Any]) -> None:
        """Log one epoch's metrics against images seen, once, however often the epoch is told."""
        step = row["images_seen"]
        if step not in self._logged:  # an interrupted run may have kept an epoch that it could no longer tell
            self._logged.add(step)
            self._log({key: value for key, value in row.items() if key != "images_seen"}, step=step)

    def facts(self, values: dict[str, Any]) -> None:
        """Log numbers that belong to the run as a whole; the UI draws them as bars."""
        self._log(values, step=0)

    def _log(self, values: dict[str, Any], *, step: int) -> None:
        self._try(lambda client: client.log_batch(self._id, metrics=_metrics(values, step=step)))

    def artifacts(self, path: Path, place: str | None = None) -> None:
        """Keep a file or a folder with the run."""
        name = "log_artifacts" if path.is_dir() else "log_artifact"
        self._try(lambda client: getattr(client, name)(self._id, str(path), place))

    def figure(self, figure: Any, place: str) -> None:
        """Keep a matplotlib figure with the run as a picture."""
        self._try(lambda client: client.log_figure(self._id, figure, place))

    def tag(self, key: str, value: str) -> None:
        """Something else to select runs by."""
        self._try(lambda client: client.set_tag(self._id, key, value))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._try(lambda client: client.set_terminated(self._id, status=status, end_time=self._ended))

    def _resume(self, client: Any) -> None:
        logged = client.get_metric_history(self._id, _in_section("val_loss"))
        self._logged = {point.step for point in logged}

    def _try(self, action: Callable[[Any], None]) -> None:
        """In a thread of its own, as Ctrl-C in the middle of a transaction would leave the store locked."""
        if (client := self._client) is None:
            return
        try:
            InThread(lambda: self._alone(client, action)).result()
        except Exception as error:  # a server that is down, a disk that is full, a store of another version
            self._client = None
            logger.warning("tracking stopped (%s); the results are not affected", _one_line(error))

    def _alone(self, client: Any, action: Callable[[Any], None]) -> None:
        with self._lock:  # what was interrupted may still be at work
            action(client)


@contextmanager
def run(tracking: Tracking, *, identity: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> Iterator[Run]:
    """The run of that identity, a new one where there is none; FAILED or KILLED where the block does not end well."""
    opened = _open(tracking, {**tags, "identity": identity}, name, params) if tracking.enabled else Run()
    try:
        yield opened
    except BaseException as error:
        opened.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    opened.end("FINISHED")


def child(tracking: Tracking, parent: Run, *, identity: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> Run:
    """A run that the UI shows under its parent; whoever opens it ends it. Not kept where the parent is not."""
    below = {**tags, "identity": identity, "mlflow.parentRunId": parent.id}
    return _open(tracking, below, name, params) if parent.id else Run()


def mark(tracking: Tracking, identities: list[str], *, tag: str) -> None:
    """Set `tag` to "yes" on the runs of these identities and take it from all others, so that the UI can select them."""
    if not tracking.enabled:
        return
    try:
        client, experiment = _client(tracking)
        for found in client.search_runs([experiment], f"tags.{tag} = 'yes'"):
            client.delete_tag(found.info.run_id, tag)
        for identity in identities:
            if found := _find(client, experiment, identity):
                client.set_tag(found.info.run_id, tag, "yes")
    except Exception as error:
        logger.warning("tracking failed (%s); the results are not affected", _one_line(error))


def register(tracking: Tracking, identity: str, *, alias: str) -> None:
    """Put the model folder of that run into the registry, under the experiment's name, and let `alias` point to it."""
    if not tracking.enabled:
        return
    try:
        client, experiment = _client(tracking)
        run, name = _find(client, experiment, identity), tracking.experiment
        if run and not _points_to(client, name, alias, run.info.run_id):
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            made = client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
            client.set_registered_model_alias(name, alias, made.version)
    except Exception as error:
        logger.warning("the registry failed (%s); the results are not affected", _one_line(error))


def _points_to(client: Any, name: str, alias: str, run_id: str) -> bool:
    aliased = [found for found in client.search_registered_models(f"name = '{name}'") if alias in found.aliases]
    return any(client.get_model_version(name, found.aliases[alias]).run_id == run_id for found in aliased)


def _open(tracking: Tracking, tags: dict[str, str], name: str, params: dict[str, Any]) -> Run:
    try:
        client, experiment = _client(tracking)
        found = _find(client, experiment, tags["identity"])
        if found is None:
            found = client.create_run(experiment, run_name=name, tags={**tags, "mlflow.source.git.commit": _git_commit()})
            client.log_batch(found.info.run_id, params=_params(params))
        ended = found.info.end_time if found.info.status == "FINISHED" else None
        client.update_run(found.info.run_id, status="RUNNING")
        return Run(client, found.info.run_id, ended)
    except Exception as error:
        logger.warning("tracking failed (%s); going on without it", _one_line(error))
        return Run()


def _metrics(values: dict[str, Any], *, step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
    return [Metric(_in_section(key), value, now, step) for key, value in numbers.items()]


def _in_section(key: str) -> str:
    return key.replace("_", "/", 1) if key.startswith(SECTIONS) else key


def _params(tree: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, str(value)) for key, value in flatten(tree).items()]


def _client(tracking: Tracking) -> tuple[Any, str]:
    """A client and the id of the experiment. MLFLOW_TRACKING_URI names a server; else a SQLite store is used."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    from filelock import FileLock
    from mlflow import MlflowClient

    folder = files.in_project(tracking.folder)
    folder.mkdir(parents=True, exist_ok=True)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    with FileLock(folder / ".lock"):  # two processes that create one store at the same moment both fail
        client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None:
            return client, experiment.experiment_id
        place = None if uri else (folder / "artifacts").as_uri()
        return client, client.create_experiment(tracking.experiment, artifact_location=place)


def _find(client: Any, experiment: str, identity: str) -> Any:
    return next(iter(client.search_runs([experiment], f"tags.identity = '{identity}'", max_results=1)), None)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _git_commit() -> str:
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
