"""minddpm against PyTorch on the CPU:  python tests/benchmarks/vs_torch.py [WORKLOAD ...] [--rounds N] [--compile]

Each side lives in a process of its own and runs only in its turns, strictly one after the other, each turn only after the
machine has been idle for a moment.  Both begin with the same weights, batches and noise, and unless their results agree
the benchmark fails.  PyTorch runs eager, in NCHW and in channels_last; the better of the two counts.  There is no dropout: the
two sides would draw different masks.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

WORKLOADS = {               # preset, batch, training or sampling
    "demo-train":   ("small", 64, "train"),
    "small-train":  ("medium", 64, "train"),
    "cifar-train":  ("cifar10", 8, "train"),
    "demo-sample":  ("small", 64, "sample"),
    "small-sample-1": ("medium", 1, "sample"),
    "small-sample-16": ("medium", 16, "sample"),
    "cifar-sample-1": ("cifar10", 1, "sample"),
    "cifar-sample-16": ("cifar10", 16, "sample"),
}
SIDES = ("minddpm", "torch", "torch channels_last")
LR, CLIP, EMA = 1e-4, 1.0, 0.999
AGREE = 1e-3                # relative: five digits of a loss are more, but the third step's loss has Adam's amplification


def minddpm_step(preset, batch, kind, threads):
    """One training step, or one evaluation of ε_θ, as a function of the step's number -> a number to compare."""
    import numpy as np

    from minddpm.model import Model
    from minddpm.run import workers_for
    from minddpm.sample import in_parallel
    from minddpm.settings import Settings
    from minddpm.train import Batch, TrainingState, train_step

    cfg, params, s = _common(preset)
    workers = workers_for(Settings(threads=threads), "cpu").__enter__()
    if kind == "sample":
        eps_theta = in_parallel(Model(cfg, params, s).eps_theta, workers)
        return lambda step: float(np.abs(eps_theta(_batch(cfg, batch, step)[0], 500)).mean())
    told = Settings(preset=preset, batch=batch, lr=LR, warmup=0, steps=1000, grad_clip=CLIP, ema=EMA)
    state = TrainingState.begin(params)

    def train(step):
        x0, t, eps = _batch(cfg, batch, step)
        return train_step(told, cfg, s, state, Batch(x0, t, eps, np.zeros(batch, int)), workers).loss

    return train


def torch_step(preset, batch, kind, threads, channels_last, compiled, device="cpu"):
    """The same in PyTorch: fused Adam, foreach EMA."""
    import numpy as np
    import torch
    import torch_unet

    from minddpm import checkpoint, tree
    torch.set_num_threads(threads)
    cfg, params, s = _common(preset)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    p = {}
    for name, a in tree.flatten(params).items():
        tensor = torch.from_numpy(np.ascontiguousarray(checkpoint.to_file_layout(a))).to(device)
        p[name] = (tensor.to(memory_format=layout) if tensor.ndim == 4 else tensor).requires_grad_(kind == "train")
    network = torch.compile(torch_unet.unet) if compiled else torch_unet.unet

    def image(a):
        return torch.from_numpy(a).to(device).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    if kind == "sample":
        def sample(step):
            with torch.inference_mode():
                x, _, _ = _batch(cfg, batch, step)
                return network(cfg, p, image(x), torch.full((batch,), 500, device=device)).abs().mean().item()

        return sample
    leaves = list(p.values())
    adam = torch.optim.Adam(leaves, lr=LR, fused=True)
    average = [leaf.detach().clone() for leaf in leaves]

    def train(step):
        x0, t, eps = _batch(cfg, batch, step)
        alpha_bar = s.alpha_bar[t][:, None, None, None]
        x_t = (np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps).astype(np.float32)
        loss = ((network(cfg, p, image(x_t), torch.from_numpy(t).to(device)) - image(eps)) ** 2).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, CLIP)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, leaves, 1 - EMA)
        return loss.item()

    return train


def _common(preset):
    """Weights at which every part of the network works: the paper's initialisation leaves half of it at 1e-10."""
    import numpy as np

    from minddpm import tree
    from minddpm.diffusion import Schedule
    from minddpm.settings import PRESETS
    from minddpm.unet import parameters

    cfg, rng = replace(PRESETS[preset](), dropout=0.0), np.random.default_rng(0)       # masks would differ, and with them results
    params = tree.map(lambda d: np.ones(d.shape, np.float32) if d.centre else
                      (rng.standard_normal(d.shape) * (0.7 / np.sqrt(np.prod(d.shape[:-1]))) if len(d.shape) > 1
                       else np.zeros(d.shape)).astype(np.float32), parameters(cfg))
    return cfg, params, Schedule.linear()


def _batch(cfg, batch, step):
    import numpy as np

    rng = np.random.default_rng([1, step])
    shape = (batch, cfg.image_size, cfg.image_size, cfg.in_channels)
    return rng.random(shape, dtype=np.float32) * 2 - 1, rng.integers(1, 1001, batch), rng.standard_normal(shape, dtype=np.float32)


def serve(pipe, side, workload, threads, compiled):
    """A side's process: build, then one step for each message."""
    preset, batch, kind = WORKLOADS[workload]
    if side == "minddpm":
        step = minddpm_step(preset, batch, kind, threads)
    else:
        step = torch_step(preset, batch, kind, threads, side == "torch channels_last", compiled)
    pipe.send("ready")
    for number in iter(pipe.recv, None):
        wall, cpu = time.perf_counter(), time.process_time()
        value = step(number)
        pipe.send((time.perf_counter() - wall, time.process_time() - cpu, value))
    pipe.send(peak_mb())


def peak_mb():
    """The most memory that this process has held, libraries included."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def unset_openblas():
    """For the processes to come: where a machine sets these, OpenBLAS does not use the CPU that it runs on."""
    for name in "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE":
        os.environ.pop(name, None)


def idle(seconds=0.2, busy=0.04, patience=120):
    """Wait until all CPUs together were idle for a moment; the busy share if that did not come."""
    def ticks():
        with open("/proc/stat") as f:
            numbers = list(map(int, f.readline().split()[1:]))
        return sum(numbers), numbers[3] + numbers[4]

    end = time.monotonic() + patience
    while True:
        before = ticks()
        time.sleep(seconds)
        total, free = (b - a for a, b in zip(before, ticks(), strict=True))
        share = 1 - free / max(1, total)
        if share <= busy or time.monotonic() > end:
            return share


def started(serve, *args):
    """{side: its process, which runs serve(pipe, side, *args), and its pipe}, when all are ready."""
    context, sides = multiprocessing.get_context("spawn"), {}
    for side in SIDES:
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, side, *args), daemon=True)
        process.start()
        theirs.close()                                      # so that a process that dies is an EOFError here
        assert mine.recv() == "ready"
        sides[side] = SimpleNamespace(pipe=mine, process=process, wall=[], cpu=[], values=[])
    return sides


def ended(sides, workload, tolerance):
    """End the sides and note each one's memory.  SystemExit where the numbers of the first three steps do not agree."""
    for name, side in sides.items():
        side.pipe.send(None)
        side.memory = side.pipe.recv()
        side.process.join()
        for ours, theirs in zip(sides["minddpm"].values[:3], side.values[:3], strict=True):
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                sys.exit(f"{workload}: minddpm computes {ours!r} where {name} computes {theirs!r}")


def measure(workload, rounds, threads, compiled):
    """{side: numbers} for one workload.  SystemExit where the sides disagree."""
    sides = started(serve, workload, threads, compiled)
    busiest = 0.0
    for number in range(-3, rounds):                        # three steps to warm up and compare
        for side in sides.values():
            if number >= 0:
                busiest = max(busiest, idle())
            side.pipe.send(number + 3)
            wall, cpu, value = side.pipe.recv()
            side.values.append(value)
            if number >= 0:
                side.wall.append(wall)
                side.cpu.append(cpu)
    ended(sides, workload, AGREE)
    return {name: {"min": min(side.wall), "median": statistics.median(side.wall), "cpu": min(side.cpu), "memory_mb": side.memory}
            for name, side in sides.items()} | {"busiest": busiest}


def row(workload, numbers):
    """One line of the table: PyTorch's better layout over minddpm; above 1 minddpm is faster, or smaller."""
    ours, others = numbers["minddpm"], [numbers[side] for side in SIDES[1:]]
    best = {key: min(other[key] for other in others) for key in ours}
    return (f"| {workload} | {1000 * ours['min']:.1f} | {1000 * best['min']:.1f} | **{best['min'] / ours['min']:.2f}** | "
            f"{best['median'] / ours['median']:.2f} | {best['cpu'] / ours['cpu']:.2f} | {ours['memory_mb']:.0f} | "
            f"{best['memory_mb']:.0f} | {100 * numbers['busiest']:.0f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; by default all")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps a side")
    parser.add_argument("--threads", type=int, default=2, help="threads a side")
    parser.add_argument("--compile", action="store_true", help="torch.compile, not eager: minutes of compilation a workload")
    parser.add_argument("--json", metavar="F", help="write the numbers to F")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {min(unknown)}; expected some of {', '.join(WORKLOADS)}")

    unset_openblas()
    import numpy
    import torch
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.machine())
    head = (f"{date.today()}, {cpu}, {os.cpu_count()} CPUs, {args.threads} threads a side, Python {platform.python_version()}, "
            f"numpy {numpy.__version__}, torch {torch.__version__} {'compiled' if args.compile else 'eager'}, "
            f"{args.rounds} rounds")
    print(f"{head}\n\n"
          "| workload | minddpm ms | torch ms | ratio of min | of median | of CPU time | minddpm MB | torch MB | busy |\n"
          "|---|---|---|---|---|---|---|---|---|")
    results = {}
    for workload in args.workloads or WORKLOADS:
        results[workload] = measure(workload, args.rounds, args.threads, args.compile)
        print(row(workload, results[workload]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": head, "results": results}, indent=2))


if __name__ == "__main__":
    main()
