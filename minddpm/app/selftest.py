"""What `minddpm selftest` prints: a report of this machine, its checks and its speed, in Markdown, to be pasted anywhere."""

import platform
import time
import traceback
from pathlib import Path

import numpy as np
import scipy
from threadpoolctl import threadpool_info

import minddpm
from minddpm import device as backend
from minddpm import tree
from minddpm.app import fitting
from minddpm.app.checks import checks, weights
from minddpm.app.dry_run import peak_on_cpu
from minddpm.app.run import workers_for
from minddpm.app.settings import PRESETS, Settings
from minddpm.data import Dataset
from minddpm.model import Model
from minddpm.sample import in_parallel
from minddpm.train import TrainingState, draw_batch, train_step

WORKLOADS = {"cpu": [("small", 64)], "cuda": [("small", 64), ("cifar10", 128)]}     # presets, and images at a time
PACKAGE = Path(__file__).parent


def selftest(device):
    """Run every check on device "cpu" or "cuda" and print the report as it comes -> whether all passed."""
    start, verdicts = time.perf_counter(), []
    say(f"## minddpm selftest on {device}\n\n| machine | |\n|---|---|")
    for fact, value in machine(device).items():
        say(f"| {fact} | {value} |")
    say(f"\n| float32 on {device} against float64 in NumPy | found | expected | verdict |\n|---|---|---|---|")
    for check in checks(device):
        found, passed = verdict(check)
        verdicts.append(passed)
        say(f"| {check.name} | {found} | < {check.limit:.0e} | {'passed' if passed else '**FAILED**'} |")
    say("\n| preset | images | training step | sampling step | memory |\n|---|---|---|---|---|")
    for preset, batch in WORKLOADS[device]:
        say(costs(preset, batch, device))
    say(f"\n{'Passed' if all(verdicts) else '**FAILED**'}: {sum(verdicts)} of {len(verdicts)} checks, "
        f"{time.perf_counter() - start:.0f} s")
    return all(verdicts)


def say(text):
    """A part of the report, at once."""
    print(text, flush=True)


def machine(device):
    """{fact: value}: versions, BLAS, processor, GPU.  No paths and no names of people or machines."""
    blas = {f"{lib['internal_api']} {lib['version']} {lib.get('architecture', '')}".rstrip()
            for lib in threadpool_info() if lib["user_api"] == "blas"}
    return {"minddpm": minddpm.__version__,
            "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}, {backend.cpu_count()} CPUs",
            "NumPy": f"{np.__version__} with {', '.join(sorted(blas)) or 'an unknown BLAS'}",
            "SciPy": scipy.__version__} | (backend.gpu() if device == "cuda" else {})


def verdict(check):
    """What a check found, as text, and whether that is right; an exception is a finding too."""
    try:
        difference = check.difference()
    except Exception as error:
        return failure(error), False
    return f"{difference:.1e}", bool(difference < check.limit)                          # nan is not


def failure(error):
    """An exception as a cell of a table: its sentence, and the last line of minddpm that it went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)]
    place = f"{Path(frames[-1].filename).relative_to(PACKAGE).as_posix()}:{frames[-1].lineno}"
    return f"{backend.reason(error)} ({place})".replace(str(Path.home()), "~").replace("|", "/")


def costs(preset, batch, device):
    """A row: milliseconds of a step and bytes, for the largest of batch, batch/2, … images that fit the memory."""
    measured = {}
    try:
        images = fitting.fitting(lambda n: measured.update({n: measure(preset, n, device)}), batch, device)
    except Exception as error:
        return f"| {preset} | {batch} | {failure(error)} | | |"
    if not images:
        return f"| {preset} | 1 | out of memory | | |"
    training, sampling, memory = measured[images]
    return f"| {preset} | {images} | {1e3 * training:.1f} ms | {1e3 * sampling:.1f} ms | {memory / 2**20:,.0f} MB |"


def measure(preset, batch, device):
    """(seconds of a training step, seconds of a sampling step, bytes), with made-up images.

    Bytes: what CuPy's pool holds after it, or on the CPU the peak of one training step over what was there before.
    """
    cfg, rng = PRESETS[preset](), np.random.default_rng(0)
    shape = (batch, cfg.image_size, cfg.image_size, cfg.in_channels)
    told = Settings(preset=preset, batch=batch).resolved(shape[1:])
    dataset = Dataset("noise", rng.integers(0, 256, shape, dtype=np.uint8), np.zeros((0, *shape[1:]), np.uint8))
    s, x = told.schedule(), backend.to_device(rng.standard_normal(shape, dtype=np.float32), device)
    state = TrainingState.begin(tree.map(lambda a: backend.to_device(a, device), weights(cfg)))

    with workers_for(told, device) as workers:
        def train():
            batch = draw_batch(told, dataset, state.step + 1, device)
            train_step(told, cfg, s, state, batch, workers, dataset.levels)
            return state.params["conv_in"]["bias"]

        training = fastest(train)
        memory = peak_on_cpu(train) if device == "cpu" else 0
        eps_theta = in_parallel(Model(cfg, state.ema, s).eps_theta, workers)
        sampling = fastest(lambda: eps_theta(x, 500))
    return training, sampling, memory or backend.pool_bytes()


def fastest(f, times=3):
    """The seconds that the fastest of a few calls took, after one to warm up: until the answer could be read on the host."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        backend.to_host(f())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
