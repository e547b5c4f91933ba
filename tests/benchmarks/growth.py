"""How time and memory grow:  python tests/benchmarks/growth.py [--threads N] [--json F] [--plot F.png]

A training step's time and peak memory against batch, width and image size, one variable at a time, and the exponent k of
cost ~ variable^k, fitted to the larger half of each row.  The last line is one image through the paper's 256×256 network.
Each step is computed in a process of its own, whose peak memory the kernel reports.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from vs_torch import TRAINING, peak_mb, unset_openblas

from minddpm.diffusion import Schedule
from minddpm.fast import Workers
from minddpm.fast.training import gradient_by, update_by
from minddpm.train import Batch, TrainingState
from minddpm.unet import UNetConfig, init

SIZES = {"batch": (8, 16, 32, 64, 128), "width": (16, 32, 64, 128), "image size": (16, 32, 64, 128)}


def case(variable, value):
    """The network and batch for one point: `medium` on 32×32 images, B = 16 (4 where their size varies), but for the variable."""
    width, size = (value if variable == name else default for name, default in (("width", 32), ("image size", 32)))
    cfg = replace(UNetConfig.medium(), image_size=size, widths=(width, 2 * width, 2 * width))
    return cfg, value if variable == "batch" else 16 if variable == "width" else 4


def cost(cfg, batch, threads, steps, pipe):
    """Sends (seconds, MB): the fastest of some training steps, and the process's peak memory above what it began with."""
    s, rng = Schedule.linear(), np.random.default_rng(0)
    before, times = peak_mb(), []
    state = TrainingState.begin(init(cfg, 0))
    x0, eps = rng.standard_normal((2, batch, cfg.image_size, cfg.image_size, cfg.in_channels), dtype=np.float32)
    with Workers(threads) as workers:
        gradient, update = gradient_by(workers), update_by(workers)

        def step():
            drawn = Batch(x0, rng.integers(1, 1001, batch), eps, np.arange(batch))
            _, grad = gradient("simple", cfg, s, state.params, drawn)
            update(TRAINING, state, grad)

        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    pipe.send((min(times), peak_mb() - before))


def apart(*args):
    """`cost` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=cost, args=(*args, theirs))
    process.start()
    theirs.close()
    numbers = mine.recv()
    process.join()
    return numbers


def exponent(values, costs):
    """k of cost ~ value^k over the larger half of the values."""
    half = len(values) // 2
    return np.polyfit(np.log(values[half:]), np.log(costs[half:]), 1)[0]


def plot(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(rows), figsize=(10, 5.5), sharey="row", layout="constrained")
    for column, (variable, points) in zip(axes.T, rows.items(), strict=True):
        values = [value for value, *_ in points]
        for ax, unit, costs in zip(column, ("ms a step", "peak MB"), list(zip(*points, strict=True))[1:], strict=True):
            costs = [1000 * c for c in costs] if unit == "ms a step" else costs
            ax.loglog(values, costs, "o-", color="tab:blue")
            ax.set_xticks(values, values)
            ax.minorticks_off()
            ax.set_title(f"~ {variable}^{exponent(values, costs):.2f}", fontsize=10)
            ax.set_xlabel(variable)
            ax.set_ylabel(unit if variable == next(iter(rows)) else "")
            ax.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="F", help="write the numbers to F")
    parser.add_argument("--plot", metavar="F", help="draw them into F")
    args = parser.parse_args()
    unset_openblas()
    rows = {}
    print("| variable | value | ms a step | peak MB |\n|---|---|---|---|")
    for variable, values in SIZES.items():
        rows[variable] = [(value, *apart(*case(variable, value), args.threads, 3)) for value in values]
        for value, seconds, mb in rows[variable]:
            print(f"| {variable} | {value} | {1000 * seconds:.0f} | {mb:.0f} |")
        _, seconds, mb = zip(*rows[variable], strict=True)
        print(f"| {variable} | exponent | {exponent(values, seconds):.2f} | {exponent(values, mb):.2f} |", flush=True)
    seconds, mb = apart(UNetConfig.image256(), 1, args.threads, 1)
    print(f"| 256×256, 113.7 M parameters | 1 image | {1000 * seconds:.0f} | {mb:.0f} |")
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        Path(args.json).write_text(json.dumps(rows | {"256x256": [seconds, mb]}, indent=2))


if __name__ == "__main__":
    main()
