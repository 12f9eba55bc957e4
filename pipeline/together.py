"""Many tasks at once, each in a thread, in an order that lets the most of them run."""

import ctypes
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
SECONDS_TO_END = 20.0  # after an interruption


def together(tasks: Mapping[str, Task], *, room: Callable[[], int]) -> dict[str, BaseException]:
    """Do all tasks, those that others wait for first, as many at once as there is room for, which may change meanwhile.

    Gives the failures by name; one stops no other task, but those that need it. An interruption reaches all that run.
    """
    waiting, running, failed = _urgent_first(tasks), dict[InThread, str](), dict[str, BaseException]()
    done: set[str | None] = {None}
    try:
        while waiting or running:
            for name in [name for name in waiting if tasks[name].after in failed]:
                waiting.remove(name)
                failed[name] = Skipped(f"needs {tasks[name].after}, which failed")
            ready = [name for name in waiting if tasks[name].after in done]
            for name in ready[: max(0, room() - len(running))]:
                waiting.remove(name)
                running[InThread(tasks[name].action)] = name
            wait(running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
            for future in [each for each in running if each.done()]:
                name = running.pop(future)
                if error := future.exception():
                    failed[name] = error
                else:
                    done.add(name)
    except KeyboardInterrupt:
        for future in running:
            future.interrupt()
        wait(running, timeout=SECONDS_TO_END)
        raise
    return failed


def _urgent_first(tasks: Mapping[str, Task]) -> list[str]:
    needed = {task.after for task in tasks.values()}
    return sorted(tasks, key=lambda name: name not in needed)  # a stable sort: else in the order given


class InThread(Future[Any]):
    """What an action comes to that has a thread of its own, which ends with the process."""

    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__()
        self._thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self._thread.start()

    def _run(self, action: Callable[[], Any]) -> None:
        try:
            self.set_result(action())
        except BaseException as error:
            self.set_exception(error)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the thread, as Ctrl-C does in the main one: once it is in Python code again."""
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
