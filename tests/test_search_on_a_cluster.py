"""A search on a real cluster of two nodes."""

import pytest

from pipeline.search import tune
from tests.test_search import run, subject


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_fills_all_nodes_of_a_cluster_and_survives_the_loss_of_one(params, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    running, most, lost = set(), [0], []

    def count(trial, row):
        running.add(trial.number)
        most[0] = max(most[0], len(running))
        if len(running) == 2 and not lost:
            lost.append(trial.number)
            nodes.remove_node(second, allow_graceful=False)

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = nodes.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        made = subject(params, duration="80 epochs", budget={"trials": 3})
        listener = tune.Listener(epoch=count, ended=lambda trial: running.discard(trial.number))
        done = run(made, tmp_path, listener=listener)
    finally:
        nodes.shutdown()
    assert most == [2] and lost and [each.status for each in done] == ["finished"] * 3
    assert all([row["epoch"] for row in each.history] == list(range(1, 81)) for each in done)
