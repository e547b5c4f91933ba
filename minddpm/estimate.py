"""What a training run will cost, from one small part of a step that is really computed."""

import time
import tracemalloc
from dataclasses import asdict, replace

from minddpm import backend, tree
from minddpm.memory import TRAINING
from minddpm.progress import clock
from minddpm.run import prepare, workers_for
from minddpm.train import TrainingState, draw_batch, gradient, train_step
from minddpm.unet import init

PART = 16                   # images a thread computes at a time: see workers.py


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
    one_part = replace(told, batch=min(told.batch, PART))
    batch = draw_batch(one_part, dataset, 1)
    part_bytes = {policy: _peak_bytes(told, cfg, state.params, batch, run) for policy, run in TRAINING.items()}
    measured = min(told.batch, PART * threads)
    seconds = seconds_per_step(replace(told, batch=measured), steps=2) * told.batch / measured
    weights = 4 * tree.size(state.params)
    parts = min(threads, -(-told.batch // PART))
    fixed = 4 * weights + weights + dataset.train.nbytes + dataset.held_out.nbytes
    memory = {policy: f"about {(fixed + parts * peak) / 2**20:,.0f} MB" for policy, peak in part_bytes.items()}
    others = ", ".join(f"{amount} with --memory {policy}" for policy, amount in memory.items() if policy != told.memory)
    lines = [f"  {name:13} {value}" for name, value in asdict(told).items()]
    return "\n".join([
        "settings", *lines,
        f"data           {len(dataset.train)} images to train on, {len(dataset.held_out)} held out",
        f"parameters     {tree.size(state.params):,}",
        f"memory         {memory[told.memory]} ({others})",
        f"time           about {seconds:.2g} s a step, {clock(seconds * told.steps)} in all, on {threads} threads",
    ])


def _peak_bytes(told, cfg, params, batch, run):
    """What the gradient of one part needs while one thread computes it."""
    tracemalloc.start()
    with workers_for(replace(told, threads=1), "cpu") as workers:
        gradient(told.objective, cfg, told.schedule(), params, batch, workers, run=run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def _throwaway(wanted):
    dataset, told, _ = prepare(wanted)
    cfg = told.config(dataset.image_shape[2])
    return told, cfg, dataset, TrainingState.begin(init(cfg, told.seed))
