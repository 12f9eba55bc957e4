"""The model of a step on several workers, which docs/scaling.md tells of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling import Machine, all_reduce_seconds, efficiency, step_seconds

SECONDS = st.floats(1e-6, 1e-1)
MACHINES = st.builds(Machine, SECONDS, SECONDS, bandwidth=st.floats(1e6, 1e12), latency=SECONDS)


@given(MACHINES, st.integers(1, 512), st.integers(1, 64), st.floats(1, 1e9))
def test_no_number_of_workers_is_more_than_as_many_times_as_fast(machine, share, workers, size):
    alone = step_seconds(machine, share * workers, size, 1)
    sent_after, hidden = (step_seconds(machine, share * workers, size, workers, hidden=way) for way in (False, True))
    assert alone / workers <= hidden * (1 + 1e-9) and hidden <= sent_after
    assert sent_after <= step_seconds(machine, share * workers, 2 * size, workers)


@given(MACHINES, st.floats(1, 1e9))
def test_one_worker_sends_nothing_and_a_ring_less_than_twice_the_gradients_for_each(machine, size):
    assert all_reduce_seconds(machine, size, 1) == 0
    free = Machine(0, 0, machine.bandwidth, latency=0)
    assert all_reduce_seconds(free, size, 2) == pytest.approx(size / machine.bandwidth)
    assert all_reduce_seconds(free, size, 64) < 2 * size / machine.bandwidth


def test_larger_batches_keep_more_gpus_busy():
    for name in ("DeiT-Ti", "ViT-S"):
        assert efficiency(name, 1024, 64) < efficiency(name, 4096, 64) < efficiency(name, 4096, 8) < 1
