"""What a training run will cost, from one small part of a step that is really computed."""

import time
import tracemalloc
from dataclasses import asdict, replace

from minddpm import backend, tree
from minddpm.likelihood import prior_warning
from minddpm.memory import TRAINING
from minddpm.progress import clock
from minddpm.run import prepare, workers_for
from minddpm.train import TrainingState, draw_batch, gradient, train_step
from minddpm.unet import init
from minddpm.workers import PART


def seconds_per_step(wanted, steps=5):
    """The time of a training step with these settings: the fastest of a few, on a state that is thrown away."""
    told, cfg, dataset, state = _throwaway(wanted)
    times = []
    with workers_for(told, "cpu") as workers:
        for step in range(1, steps + 1):
            start = time.perf_counter()
            train_step(told, cfg, told.schedule(), state, draw_batch(told, dataset, step), workers)
            times.append(time.perf_counter() - start)
    return min(times)


def estimate(wanted):
    """Settings, parameters, memory and time of a run as text, for --dry-run.  UserError: as begin."""
    told, cfg, dataset, state = _throwaway(wanted)
    threads = told.threads or backend.cpu_count()
    measured = min(told.batch, PART * threads)
    seconds = seconds_per_step(replace(told, batch=measured), steps=2) * told.batch / measured
    costs = {name: _cost_of_a_part(told, cfg, dataset, state, run) for name, run in TRAINING.items()}
    weights = 4 * tree.size(state.params)
    parts = min(threads, -(-told.batch // PART))
    fixed = 4 * weights + weights + dataset.train.nbytes + dataset.held_out.nbytes
    memory = {name: (fixed + parts * part_bytes) / 2**20 for name, (part_bytes, _) in costs.items()}
    other = next(name for name in costs if name != told.memory)
    lines = [f"  {name:13} {value}" for name, value in asdict(told).items()]
    warning = prior_warning(told.schedule())
    return "\n".join([
        "settings", *lines,
        f"data           {len(dataset.train)} images to train on, {len(dataset.held_out)} held out",
        f"parameters     {tree.size(state.params):,}",
        f"memory         about {memory[told.memory]:,.0f} MB; with --memory {other} {memory[other]:,.0f} MB, "
        f"at {costs[other][1] / costs[told.memory][1]:.1f} times the time",
        f"time           about {seconds:.2g} s a step, {clock(seconds * told.steps)} in all, on {threads} threads",
        *([f"warning: {warning}"] if warning else []),
    ])


def _cost_of_a_part(told, cfg, dataset, state, run):
    """The memory, in bytes, and the time of the gradient that one thread computes at a time, under a policy of memory.py."""
    batch = draw_batch(replace(told, batch=min(told.batch, PART)), dataset, 1)
    with workers_for(replace(told, threads=1), "cpu") as workers:
        def compute():
            start = time.perf_counter()
            gradient(told.objective, cfg, told.schedule(), state.params, batch, workers, run=run)
            return time.perf_counter() - start

        tracemalloc.start()
        compute()
        _, part_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return part_bytes, min(compute() for _ in range(2))


def _throwaway(wanted):
    dataset, told, _ = prepare(wanted)
    cfg = told.config(dataset.image_shape[2])
    return told, cfg, dataset, TrainingState.begin(init(cfg, told.seed))
