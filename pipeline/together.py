"""Many tasks at once, each in a thread, in an order that lets the most of them run."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """Something to do once the task that it names, if any, is done."""

    action: Callable[[], None]
    after: str | None = None


class Skipped(Exception):
    """The task that this one needs has failed."""


SECONDS_BETWEEN_LOOKS = 10.0


def together(tasks: Mapping[str, Task], *, room: Callable[[], int]) -> dict[str, BaseException]:
    """Do all tasks, those that others wait for first, as many at once as there is room for, which may change meanwhile.

    Gives the failures by name; one stops no other task, but those that need it.
    """
    waiting, running, failed = _urgent_first(tasks), dict[Future[Any], str](), dict[str, BaseException]()
    done: set[str] = set()
    while waiting or running:
        for name in [name for name in waiting if tasks[name].after in failed]:
            waiting.remove(name)
            failed[name] = Skipped(f"needs {tasks[name].after}, which failed")
        ready = [name for name in waiting if tasks[name].after is None or tasks[name].after in done]
        for name in ready[: max(0, room() - len(running))]:
            waiting.remove(name)
            running[in_thread(tasks[name].action)] = name
        for future in wait(running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
            name = running.pop(future)
            if error := future.exception():
                failed[name] = error
            else:
                done.add(name)
    return failed


def _urgent_first(tasks: Mapping[str, Task]) -> list[str]:
    needed = {task.after for task in tasks.values()}
    return sorted(tasks, key=lambda name: name not in needed)  # a stable sort: else in the order given


def in_thread(action: Callable[[], Any]) -> Future[Any]:
    """Run the action in a thread that ends with the process."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
