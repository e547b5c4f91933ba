"""fast/training.py: the gradient is the same however many threads compute it, and whatever the network stores for it."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from test_train import SETTINGS, batch_of, close, equal, random_params, small

from minddpm import tree
from minddpm.fast import Workers
from minddpm.fast.training import gradient_by
from minddpm.train import TrainingState, gradient, update
from minddpm.unet import init
from minddpm.unet.recompute import recompute, store


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-4)])
def test_thread_counts_agree_to_rounding(dropout, dtype, tolerance):
    """Loss and every leaf of the gradient for 1, 2 and 3 threads, with flips, against the batch in one piece."""
    cfg, s, batch = small(dropout=dropout), SETTINGS.schedule(), batch_of(SETTINGS, dtype=dtype)
    params = random_params(cfg, dtype)
    whole_loss, whole = gradient("simple", cfg, s, params, batch)
    for threads, part in (1, 16), (2, 16), (3, 16), (2, 5), (1, 1), (3, 100):
        with Workers(threads, part) as workers:
            loss, grad = gradient_by(workers)("simple", cfg, s, params, batch)
        assert loss == pytest.approx(whole_loss, rel=tolerance)
        close(grad, whole, tolerance)
        assert all(g.dtype == dtype for g in tree.leaves(grad))


def test_the_memory_policy_changes_memory_and_no_bit():
    """Gradient checkpointing replays each block, dropout included: the same step, with a smaller peak."""
    cfg, peaks, states = small(), {}, {}
    settings = replace(SETTINGS, batch=16)
    for policy in store, recompute:
        state = TrainingState.begin(init(cfg, 0))
        with Workers(1) as workers:
            for step in 1, 2:
                batch = batch_of(settings, step, np.float32)
                tracemalloc.start()
                _, grad = gradient_by(workers, policy)("simple", cfg, settings.schedule(), state.params, batch, levels=17)
                update(settings, state, grad)
                _, peaks[policy] = tracemalloc.get_traced_memory()
                tracemalloc.stop()
        states[policy] = state
    equal(states[store].params, states[recompute].params)
    equal(states[store].v, states[recompute].v)
    assert peaks[recompute] < 0.7 * peaks[store]


def test_a_batch_smaller_than_the_number_of_threads():
    cfg, s, batch = small(), SETTINGS.schedule(), batch_of(replace(SETTINGS, batch=2))
    params = random_params(cfg)
    with Workers(1) as one, Workers(5) as five:
        close(*(gradient_by(workers)("simple", cfg, s, params, batch)[1] for workers in (one, five)), 1e-12)


def test_the_same_number_of_threads_agrees_bit_for_bit():
    """Parts are added in a fixed order, whichever is ready first: what makes a resumed run equal an uninterrupted one."""
    cfg, s, batch = small(), SETTINGS.schedule(), batch_of(SETTINGS, dtype=np.float32)
    params = random_params(cfg, np.float32)
    with Workers(3, part=2) as workers:
        loss, first = gradient_by(workers)("simple", cfg, s, params, batch)
        for _ in range(3):
            again, grad = gradient_by(workers)("simple", cfg, s, params, batch)
            assert again == loss
            equal(grad, first)
