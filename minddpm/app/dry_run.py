"""The memory and time of a training run, from a few steps on as many images as are computed at a time."""

import tracemalloc
from contextlib import contextmanager
from dataclasses import asdict, replace
from timeit import repeat

from minddpm import tree
from minddpm.app.progress import clock
from minddpm.app.run import new_state, prepare
from minddpm.app.settings import prior_warning
from minddpm.fast import workers_for
from minddpm.fast.device import free_memory, out_of_memory, pool_bytes
from minddpm.fast.training import gradient_by, update_by
from minddpm.train import train

BASE_RSS = 55 * 2**20       # bytes: the process with NumPy and minddpm imported
THREAD_RSS = 20 * 2**20     # bytes: a worker thread's BLAS buffers and the allocator's own memory for it
ALLOCATOR_OVERHEAD = 1.05   # resident memory for the arrays of a step over their bytes: measured 1.0 to 1.1
STEPS = 10**9               # more than are ever tried


def seconds_per_step(requested, steps=5):
    """The time of a training step with these settings: the fastest of a few, on a state that is thrown away."""
    settings, dataset, device = prepare(requested)
    with _trial(settings, dataset, device, new_state(settings, dataset, device)) as step:
        return min(repeat(step, number=1, repeat=steps))


def dry_run(requested):
    """Settings, parameters, memory and time of a run as text, for --dry-run.  UserError: as run.begin, or out of memory."""
    settings, dataset, device = prepare(requested)
    state = new_state(settings, dataset, device)
    workers = workers_for(device, settings.threads, settings.batch)
    sizes = [part.stop - part.start for part in workers.parts(settings.batch)]
    images = max(sizes) * min(len(sizes), workers.threads)              # computed at a time
    with out_of_memory(f"trying a step with --batch {settings.batch}", "try a smaller --batch or --memory checkpoint"), \
            _trial(replace(settings, batch=images), dataset, device, state) as step:
        peak = _peak(step, device)
        seconds = min(repeat(step, number=1, repeat=2)) * settings.batch / images
    weights = sum(a.nbytes for a in tree.leaves(state.params))
    if len(sizes) > workers.threads:
        peak += weights                                                 # the sum of the parts' gradients
    if device == "cpu":
        peak = (BASE_RSS + THREAD_RSS * workers.threads + ALLOCATOR_OVERHEAD * peak
                + 4 * weights + dataset.train.nbytes + dataset.held_out.nbytes)
    warning = prior_warning(settings.schedule())
    return "\n".join([
        "settings", *(f"  {name:13} {value}" for name, value in asdict(settings).items()),
        f"data           {len(dataset.train)} images to train on, {len(dataset.held_out)} held out",
        f"parameters     {sum(a.size for a in tree.leaves(state.params)):,}",
        f"memory         about {peak / 2**20:,.0f} MB",
        f"time           about {seconds:.2g} s a step, {clock(seconds * settings.steps)} in all, "
        + ("on the GPU" if device == "cuda" else f"on {workers.threads} threads"),
        *([f"warning: {warning}"] if warning else []),
    ])


@contextmanager
def _trial(settings, dataset, device, state):
    """A function that does the next training step and waits for its result."""
    settings = replace(settings, steps=STEPS)
    with workers_for(device, settings.threads, settings.batch) as workers:
        steps = train(settings, settings.config(dataset.image_shape[2]), settings.schedule(), state, dataset,
                      gradient_by(workers, settings.policy), update_by(workers))
        yield lambda: next(steps).checked()


def _peak(step, device):
    """The bytes that a step allocates at most at a time; on a GPU all that CuPy's pool then holds, which only grows."""
    free_memory(device)
    tracemalloc.start()
    try:
        step()
        return pool_bytes() if device == "cuda" else tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
