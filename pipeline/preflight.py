"""Whether all nodes that may train share the place of the checkpoints, asked before anything is trained."""

import secrets
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from pipeline.checkpoints import Checkpoints
from pipeline.config import UserError

SECONDS_TO_ANSWER = 60.0


class Node(NamedTuple):
    """A machine of a cluster."""

    id: str  # Ray's own
    name: str


@cache  # the trainings of one train_all have the same place and the same nodes
def refuse_a_place_that_is_not_shared(place: str, nodes: tuple[Node, ...]) -> None:
    """Each node writes a marker, then reads and deletes that of the next. Raises UserError, naming a node that cannot."""
    kept = Checkpoints(place)
    markers = _on_each(kept.mark, {node: f".marker-{secrets.token_hex(4)}" for node in nodes})
    following = [*markers.values()][1:] + [*markers.values()][:1]
    _on_each(kept.unmark, dict(zip(markers, following, strict=True)))


def _on_each(action: Callable[[str], None], names: dict[Node, str]) -> dict[Node, str]:
    """Have every node do this with its name; those that did. A node that is lost meanwhile is left to Ray Train."""
    import ray
    from ray.exceptions import RayError

    asked = {_ask(node, action, name): node for node, name in names.items()}
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
    if silent:
        raise UserError(f"node {asked[silent[0]].name} gives no answer about the checkpoints within {SECONDS_TO_ANSWER:.0f} s")
    done = {}
    for answer in answered:
        try:
            mistake = ray.get(answer)
        except RayError:
            continue
        if mistake:
            raise UserError(mistake)
        done[asked[answer]] = names[asked[answer]]
    return done


def _ask(node: Node, action: Callable[[str], None], name: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(_mistake).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(action, name)


def _mistake(action: Callable[[str], None], name: str) -> str:
    """What a person must put right for this to work; empty where it does."""
    try:
        action(name)
    except UserError as error:
        return str(error)
    return ""
