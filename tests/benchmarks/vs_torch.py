"""minddpm against PyTorch on the CPU:  python tests/benchmarks/vs_torch.py [WORKLOAD ...] [--rounds N] [--compile]

Each side lives in a process of its own and runs only in its turns, strictly one after the other, each turn only after the
machine has been idle for a moment; where that does not come, nothing more is measured.  Both begin with the same weights,
batches and noise, which are drawn before the time begins, and unless their results agree the benchmark fails: of the first
three steps, what `trained` and `sampled` name.  PyTorch runs eager, in NCHW and in channels_last; the better of the two counts.
There is no dropout: the two sides would draw different masks.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

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
TRAINING = SimpleNamespace(lr=LR, lr_final=None, warmup=0, steps=1000, grad_clip=CLIP, ema=EMA)
T_SAMPLED = 10              # the t of a sampling step, where x_{t−1} depends on ε_θ, x̂_0 and the noise alike
WARM_UP = COMPARED = 3      # steps
AGREE = 5e-5                # relative; measured: 4e-6, and 1e-3 where one step of Adam or EMA is only slightly another


class Side(NamedTuple):
    """One side of a workload: step(batch of `draw`) -> a result, which is timed; numbers(result) -> {what has to agree}."""

    step: Callable
    numbers: Callable


def minddpm_side(preset, kind, workers, device="cpu"):
    """Training steps, the lines of train.py once a batch is drawn, or sampling steps, the lines of sample.py."""
    from minddpm import tree
    from minddpm.device import to_device, to_host
    from minddpm.fast import ops_for, parallel
    from minddpm.fast.training import gradient_by, update_by
    from minddpm.model import Model
    from minddpm.reverse import p_theta
    from minddpm.train import Batch, TrainingState

    cfg, params, s = common(preset)
    params = tree.map(lambda a: to_device(a, device), params)
    if kind == "sample":
        network = parallel(Model(cfg, params, s, ops=ops_for(params, cfg.image_size)).output, workers)

        def sample(batch):
            x_t, z = (to_device(a, device) for a in (batch.x0, batch.eps))
            eps = network(x_t, T_SAMPLED)
            p = p_theta(s, x_t, T_SAMPLED, eps)
            return eps, p.mean + p.var**0.5 * z

        return Side(sample, lambda result: sampled(*map(to_host, result)))
    state, gradient, update = TrainingState.begin(params), gradient_by(workers), update_by(workers)

    def train(batch):
        drawn = Batch(batch.x0, batch.t, batch.eps, np.zeros_like(batch.t))
        loss, grad = gradient("simple", cfg, s, state.params, drawn)
        grad_norm, _ = update(TRAINING, state, grad)
        return loss, grad_norm

    def numbers(result):
        trees = (map(to_host, tree.leaves(p)) for p in (state.m, state.v, state.params, state.ema))
        return trained(*result, lambda: weights(cfg), *trees)

    return Side(train, numbers)


def torch_side(preset, kind, threads, channels_last, compiled, device="cpu"):
    """The same in PyTorch: fused Adam, foreach EMA."""
    import torch
    import torch_unet

    from minddpm import tree
    from minddpm.storage.weights import to_file_layout

    torch.set_num_threads(threads)
    cfg, params, s = common(preset)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    p = {}
    for name, a in tree.flatten(params).items():
        tensor = torch.from_numpy(np.ascontiguousarray(to_file_layout(a))).to(device)
        p[name] = (tensor.to(memory_format=layout) if tensor.ndim == 4 else tensor).requires_grad_(kind == "train")
    network = torch.compile(torch_unet.unet) if compiled else torch_unet.unet

    def image(a):
        return torch.from_numpy(a).to(device).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    if kind == "sample":
        t, alpha, alpha_bar = T_SAMPLED, s.alpha.tolist(), s.alpha_bar.tolist()
        coef_x0 = alpha_bar[t - 1]**0.5 * (1 - alpha[t]) / (1 - alpha_bar[t])
        coef_xt = alpha[t]**0.5 * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])

        @torch.inference_mode()
        def sample(batch):
            x_t, z = image(batch.x0), image(batch.eps)
            eps = network(cfg, p, x_t, torch.full((len(x_t),), t, device=device))
            x0 = ((x_t - (1 - alpha_bar[t])**0.5 * eps) / alpha_bar[t]**0.5).clamp(-1, 1)
            return eps, coef_x0 * x0 + coef_xt * x_t + (1 - alpha[t])**0.5 * z

        return Side(sample, lambda result: sampled(*(a.permute(0, 2, 3, 1).cpu().numpy() for a in result)))
    leaves = list(p.values())
    adam = torch.optim.Adam(leaves, lr=LR, fused=True)
    average = [torch.zeros_like(leaf) for leaf in leaves]

    def train(batch):
        alpha_bar = s.alpha_bar[batch.t][:, None, None, None]
        x_t = (np.sqrt(alpha_bar) * batch.x0 + np.sqrt(1 - alpha_bar) * batch.eps).astype(np.float32)
        loss = ((network(cfg, p, image(x_t), torch.from_numpy(batch.t).to(device)) - image(batch.eps)) ** 2).mean()
        first = not adam.state
        adam.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(leaves, CLIP)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, leaves, 1.0 if first else 1 - EMA)            # the first step copies, see optim.ema
        return loss.detach(), grad_norm

    def numbers(result):
        moments = ([adam.state[leaf][name] for leaf in leaves] for name in ("exp_avg", "exp_avg_sq"))
        on_host = ((a.detach().cpu().numpy() for a in arrays) for arrays in (*moments, leaves, average))
        return trained(*result, lambda: map(to_file_layout, weights(cfg)), *on_host)

    return Side(train, numbers)


def common(preset):
    """The network's sizes, its weights, and the schedule, with which both sides begin.  No dropout: the masks would differ."""
    from minddpm import tree
    from minddpm.diffusion import Schedule
    from minddpm.unet import parameters

    cfg = replace(config(preset), dropout=0.0)
    made = weights(cfg)
    return cfg, tree.map(lambda _: next(made), parameters(cfg)), Schedule.linear()


def config(preset):
    """The network's sizes: UNetConfig.small() for "small", and so on."""
    from minddpm.unet import UNetConfig

    return getattr(UNetConfig, preset)()


def weights(cfg):
    """Yields weights at which every part of the network works: the paper's initialisation leaves half of it at 1e-10.

    One by one, so that to compare with them takes no memory, which is measured too.
    """
    from minddpm import tree
    from minddpm.unet import parameters

    rng = np.random.default_rng(0)
    for shape, centre, _ in tree.leaves(parameters(cfg)):
        if len(shape) > 1:
            yield (rng.standard_normal(shape) * (0.7 / np.sqrt(np.prod(shape[:-1])))).astype(np.float32)
        else:
            yield np.full(shape, centre, np.float32)


def draw(preset, batch, number):
    """The batch of step `number`: x0, which sampling takes for x_t, eps, which it takes for z, (B,H,W,C); t (B,)."""
    cfg, rng = config(preset), np.random.default_rng([1, number])
    shape = (batch, cfg.image_size, cfg.image_size, cfg.in_channels)
    x0, t = rng.random(shape, dtype=np.float32) * 2 - 1, rng.integers(1, 1001, batch)
    return SimpleNamespace(x0=x0, t=t, eps=rng.standard_normal(shape, dtype=np.float32))


def trained(loss, grad_norm, begun, m, v, params, ema):
    """What has to agree after a training step.  m depends on the clipping, v and the weights on Adam, the average on its decay.

    begun() -> the weights before the first step; they and the others are arrays on the host, leaf by leaf.
    """
    def way(arrays):
        return norm(a - b for a, b in zip(arrays, begun(), strict=True))

    return {"the loss": float(loss), "the gradient's norm": float(grad_norm), "the norm of Adam's m": norm(m),
            "the norm of Adam's v": norm(v), "the weights' way": way(params), "their average's way": way(ema)}


def sampled(eps, x):
    """What has to agree after a sampling step."""
    return {"ε_θ": eps, "x_{t−1}": x}


def norm(arrays):
    """√(Σ a²) over all numbers, in float64."""
    return math.sqrt(sum(np.vdot(a, a) for a in (np.asarray(a, np.float64) for a in arrays)))


def differences(ours, theirs):
    """{what: the relative difference} of two sides' numbers."""
    return {what: norm([ours[what] - theirs[what]]) / max(norm([theirs[what]]), 1e-30) for what in theirs}


def serve(pipe, side, workload, threads, compiled):
    """A side's process: `serve_steps`, and at the end its memory."""
    from minddpm.fast import Workers

    preset, batch, kind = WORKLOADS[workload]
    if side == "minddpm":
        with Workers(threads) as workers:
            serve_steps(pipe, minddpm_side(preset, kind, workers), preset, batch)
    else:
        serve_steps(pipe, torch_side(preset, kind, threads, side == "torch channels_last", compiled), preset, batch)
    pipe.send(peak_mb())


def serve_steps(pipe, side, preset, batch):
    """For each step's number: its time, its CPU time, and of the first steps what has to agree, or None."""
    pipe.send("ready")
    for number in iter(pipe.recv, None):
        drawn = draw(preset, batch, number)
        wall, cpu = time.perf_counter(), time.process_time()
        result = side.step(drawn)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pipe.send((wall, cpu, side.numbers(result) if number < COMPARED else None))


def peak_mb():
    """The most memory that this process has held, libraries included."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def unset_openblas():
    """For the processes to come: where a machine sets these, OpenBLAS does not use the CPU that it runs on."""
    for name in "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE":
        os.environ.pop(name, None)


def idle(seconds=0.2, busy=0.04, patience=120):
    """Wait until all CPUs together were idle for a moment -> their busy share of it.  SystemExit where that does not come."""
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
        if share <= busy:
            return share
        if time.monotonic() > end:
            sys.exit(f"the machine was never idle within {patience} s (now {share:.0%} busy, expected at most {busy:.0%}): "
                     "what is timed on it would mean nothing")


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
    """End the sides and note each one's memory.  SystemExit where the numbers of the first steps do not agree."""
    for name, side in sides.items():
        side.pipe.send(None)
        side.memory = side.pipe.recv()
        side.process.join()
        for number, (ours, theirs) in enumerate(zip(sides["minddpm"].values, side.values, strict=True)):
            for what, difference in differences(ours, theirs).items():
                if not difference <= tolerance:
                    sys.exit(f"{workload}, step {number + 1}: {what} of minddpm and of {name} differ by {difference:.1e}, "
                             f"expected at most {tolerance:.0e}")


def turn(side, number):
    """One step of a side, whose time and numbers it notes."""
    side.pipe.send(number)
    wall, cpu, values = side.pipe.recv()
    side.wall.append(wall)
    side.cpu.append(cpu)
    side.values += [] if values is None else [values]


def measure(workload, rounds, threads, compiled):
    """{side: numbers} for one workload.  SystemExit where the sides disagree, or the machine is busy."""
    sides = started(serve, workload, threads, compiled)
    busiest = 0.0
    for number in range(WARM_UP + rounds):
        for side in sides.values():
            if number >= WARM_UP:
                busiest = max(busiest, idle())
            turn(side, number)
    ended(sides, workload, AGREE)
    return {name: {"min": min(side.wall[WARM_UP:]), "median": statistics.median(side.wall[WARM_UP:]),
                   "cpu": min(side.cpu[WARM_UP:]), "memory_mb": side.memory}
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
    import torch
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.machine())
    head = (f"{date.today()}, {cpu}, {os.cpu_count()} CPUs, {args.threads} threads a side, Python {platform.python_version()}, "
            f"numpy {np.__version__}, torch {torch.__version__} {'compiled' if args.compile else 'eager'}, "
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
