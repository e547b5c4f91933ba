"""What a training run will cost, from one small part of a step that is really computed."""

import time
import tracemalloc
from dataclasses import asdict, replace
from typing import NamedTuple

from minddpm import device as backend
from minddpm import tree
from minddpm.app.fitting import proposing
from minddpm.app.progress import clock
from minddpm.app.run import prepare, resident, workers_for
from minddpm.app.settings import Settings
from minddpm.data import Dataset
from minddpm.fast import ops as layers
from minddpm.likelihood import prior_warning
from minddpm.train import TrainingState, draw_batch, gradient, train_step
from minddpm.unet import UNetConfig, init
from minddpm.unet.recompute import TRAINING

PROGRAM = 40 * 2**20        # bytes: Python with NumPy, before it has done anything
GAPS = 1.05                 # what a process holds over its arrays, which come and go: measured 1.00 to 1.12


class Trial(NamedTuple):
    """A run that is thrown away, with all that it needs on its device."""

    told: Settings
    cfg: UNetConfig
    dataset: Dataset
    state: TrainingState
    device: str

    @property
    def parts(self):
        """How many images each part of the batch has."""
        return [part.stop - part.start for part in workers_for(self.told, self.device).parts(self.told.batch)]

    @property
    def threads(self):
        """How many parts are computed at a time."""
        return min(len(self.parts), workers_for(self.told, self.device).threads)

    def of(self, images):
        """The same with another batch."""
        return self._replace(told=replace(self.told, batch=images))


def seconds_per_step(wanted, steps=5):
    """The time of a training step with these settings: the fastest of a few, on a state that is thrown away."""
    return _seconds(_trial(wanted), steps)


def _seconds(trial, steps):
    told, cfg, dataset, state, device = trial
    times = []
    with workers_for(told, device) as workers:
        for step in range(1, steps + 1):
            start = time.perf_counter()
            train_step(told, cfg, told.schedule(), state, draw_batch(told, dataset, step, device), workers).read(step)
            times.append(time.perf_counter() - start)
    return min(times)


def estimate(wanted):
    """Settings, parameters, memory and time of a run as text, for --dry-run.

    UserError: as begin, and where the memory does not suffice, with a batch for which it does.
    """
    trial = _trial(wanted)
    return proposing(lambda: _report(trial), trial.told.batch, lambda images: _seconds(trial.of(images), 1), trial.device,
                     "trying a step")


def _report(trial):
    told, _, dataset, state, _ = trial
    measured = max(trial.parts) * trial.threads
    seconds = _seconds(trial.of(measured), steps=2) * told.batch / measured
    lines = [f"  {name:13} {value}" for name, value in asdict(told).items()]
    warning = prior_warning(told.schedule())
    where = "on the GPU" if trial.device == "cuda" else f"on {workers_for(told, trial.device).threads} threads"
    return "\n".join([
        "settings", *lines,
        f"data           {len(dataset.train)} images to train on, {len(dataset.held_out)} held out",
        f"parameters     {tree.size(state.params):,}",
        f"memory         about {_memory(trial)}",
        f"time           about {seconds:.2g} s a step, {clock(seconds * told.steps)} in all, {where}",
        *([f"warning: {warning}"] if warning else []),
    ])


def _memory(trial):
    """What the run's policy of memory.py costs and what the other one would, as text."""
    name, (other,) = trial.told.memory, TRAINING.keys() - {trial.told.memory}
    part, seconds = _cost_of_a_part(trial, TRAINING[name])
    text = f"{_peak(trial, part) / 2**20:,.0f} MB; with --memory {other} "
    try:
        other_part, other_seconds = _cost_of_a_part(trial, TRAINING[other])
    except Exception as error:
        if not backend.is_out_of_memory(error):
            raise
        return text + "it does not fit"
    return text + f"{_peak(trial, other_part) / 2**20:,.0f} MB, at {other_seconds / seconds:.1f} times the time"


def _peak(trial, part):
    """The bytes that the run holds at most, of which `part` a gradient of one part: the process, or on a GPU CuPy's pool.

    Weights, their average and Adam's moments; the images; for each part at a time its gradient; the weights made ready for
    all of them, which `part` holds too; and where parts follow on others, the sum of their gradients.
    """
    dataset, params = trial.dataset, trial.state.params
    weights = 4 * tree.size(params)
    if trial.device == "cuda":
        return 4 * weights + part + (dataset.train.nbytes if backend.is_cuda(dataset.train) else 0)
    ready = sum(a.nbytes for a in tree.leaves(layers.prepare(params, trial.cfg.image_size, training=True))) - weights
    total = weights if len(trial.parts) > trial.threads else 0
    step = ready + trial.threads * (part - ready) + total
    return PROGRAM + 4 * weights + dataset.train.nbytes + dataset.held_out.nbytes + GAPS * step


def _cost_of_a_part(trial, run):
    """The memory, in bytes, and the time of the gradient of the largest part, under a policy of memory.py."""
    told, cfg, dataset, state, device = trial.of(max(trial.parts))
    batch = draw_batch(told, dataset, 1, device)
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
