"""What a training run will cost, from one small part of a step that is really computed."""

import time
import tracemalloc
from dataclasses import asdict, replace
from typing import NamedTuple

from minddpm import backend, tree
from minddpm.data import Dataset
from minddpm.likelihood import prior_warning
from minddpm.memory import TRAINING
from minddpm.progress import clock
from minddpm.run import prepare, resident, workers_for
from minddpm.settings import Settings
from minddpm.train import TrainingState, draw_batch, gradient, train_step
from minddpm.unet import UNetConfig, init
from minddpm.workers import PART


class Trial(NamedTuple):
    """A run that is thrown away, with all that it needs on its device."""

    told: Settings
    cfg: UNetConfig
    dataset: Dataset
    state: TrainingState
    device: str

    @property
    def threads(self):
        """How many parts of a batch are computed at a time."""
        return 1 if self.device == "cuda" else self.told.threads or backend.cpu_count()

    @property
    def part(self):
        """How many images a part has; a GPU takes the batch whole."""
        return self.told.batch if self.device == "cuda" else min(self.told.batch, PART)


def seconds_per_step(wanted, steps=5):
    """The time of a training step with these settings: the fastest of a few, on a state that is thrown away."""
    told, cfg, dataset, state, device = _trial(wanted)
    times = []
    with workers_for(told, device) as workers:
        for step in range(1, steps + 1):
            start = time.perf_counter()
            train_step(told, cfg, told.schedule(), state, draw_batch(told, dataset, step, device), workers).read(step)
            times.append(time.perf_counter() - start)
    return min(times)


def estimate(wanted):
    """Settings, parameters, memory and time of a run as text, for --dry-run.  UserError: as begin."""
    trial = _trial(wanted)
    told, _, dataset, state, _ = trial
    measured = min(told.batch, trial.part * trial.threads)
    seconds = seconds_per_step(replace(told, batch=measured), steps=2) * told.batch / measured
    costs = {name: _cost_of_a_part(trial, run) for name, run in TRAINING.items()}
    weights = 4 * tree.size(state.params)
    parts = min(trial.threads, -(-told.batch // trial.part))
    fixed = 4 * weights + weights + dataset.train.nbytes + dataset.held_out.nbytes
    memory = {name: (fixed + parts * part_bytes) / 2**20 for name, (part_bytes, _) in costs.items()}
    other = next(name for name in costs if name != told.memory)
    lines = [f"  {name:13} {value}" for name, value in asdict(told).items()]
    warning = prior_warning(told.schedule())
    where = "on the GPU" if trial.device == "cuda" else f"on {trial.threads} threads"
    return "\n".join([
        "settings", *lines,
        f"data           {len(dataset.train)} images to train on, {len(dataset.held_out)} held out",
        f"parameters     {tree.size(state.params):,}",
        f"memory         about {memory[told.memory]:,.0f} MB; with --memory {other} {memory[other]:,.0f} MB, "
        f"at {costs[other][1] / costs[told.memory][1]:.1f} times the time",
        f"time           about {seconds:.2g} s a step, {clock(seconds * told.steps)} in all, {where}",
        *([f"warning: {warning}"] if warning else []),
    ])


def _cost_of_a_part(trial, run):
    """The memory, in bytes, and the time of the gradient that one thread computes at a time, under a policy of memory.py."""
    told, cfg, dataset, state, device = trial
    batch = draw_batch(replace(told, batch=trial.part), dataset, 1, device)
    with workers_for(replace(told, threads=1), device) as workers:
        def compute():
            start = time.perf_counter()
            loss, _ = gradient(told.objective, cfg, told.schedule(), state.params, batch, workers, run=run)
            float(loss)
            return time.perf_counter() - start

        peak = _peak_on_gpu if device == "cuda" else peak_on_cpu
        return peak(compute), min(compute() for _ in range(2))


def peak_on_cpu(compute):
    """The bytes that compute() held at most, over what was there before."""
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _peak_on_gpu(compute):
    """CuPy's pool only grows: what it has gained is the peak."""
    backend.free_memory("cuda")
    before = backend.pool_bytes()
    compute()
    return backend.pool_bytes() - before


def _trial(wanted):
    dataset, told, device = prepare(wanted)
    cfg = told.config(dataset.image_shape[2])
    params = tree.map(lambda a: backend.to_device(a, device), init(cfg, told.seed))
    return Trial(told, cfg, resident(dataset, device), TrainingState.begin(params), device)
