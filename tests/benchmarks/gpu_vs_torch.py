"""minddpm against PyTorch on the same GPU:  python tests/benchmarks/gpu_vs_torch.py [WORKLOAD ...] [--rounds N]

The workloads of vs_torch.py and cifar10 at B = 128, each in float32 and in TF32 on both sides.  Each side lives in a process of
its own and runs in its turns.  A step is timed from an idle GPU until its last kernel is done; compilation and the choice of
algorithms are over by then.  The sides begin with the same weights, batches and noise, and their results must agree.  Batches are
uploaded within the time, on both sides.  We have had no GPU to run it on.
"""

import argparse
import os
import statistics
import sys
import time
from datetime import date

import vs_torch

WORKLOADS = vs_torch.WORKLOADS | {"cifar-train-128": ("cifar10", 128, "train"), "cifar-sample-64": ("cifar10", 64, "sample")}
WARM_UP = 5
AGREE = {"float32": vs_torch.AGREE, "tf32": 3e-2}       # TF32 has 10 bits of mantissa


def minddpm_step(preset, batch, kind):
    """One training step, or one evaluation of ε_θ, of a step's number -> a function that waits for the number to compare."""
    import numpy as np

    from minddpm import backend, tree
    from minddpm.model import Model
    from minddpm.run import workers_for
    from minddpm.settings import Settings
    from minddpm.train import Batch, TrainingState, train_step

    device = backend.choose("cuda")
    cfg, params, s = vs_torch._common(preset)
    params = tree.map(lambda a: backend.to_device(a, device), params)

    def draw(step):
        x0, t, eps = vs_torch._batch(cfg, batch, step)
        return backend.to_device(x0, device), t, backend.to_device(eps, device)

    if kind == "sample":
        model = Model(cfg, params, s)
        return lambda step: float(np.abs(model.eps_theta(draw(step)[0], 500)).mean())
    told = Settings(preset=preset, batch=batch, lr=vs_torch.LR, warmup=0, steps=1000, grad_clip=vs_torch.CLIP, ema=vs_torch.EMA)
    state, workers = TrainingState.begin(params), workers_for(told, device).__enter__()

    def train(step):
        x0, t, eps = draw(step)
        loss = float(train_step(told, cfg, s, state, Batch(x0, t, eps, np.zeros(batch, int)), workers).loss)
        backend.to_host(state.ema["conv_out"]["bias"])          # written last: the step is over
        return loss

    return train


def torch_step(preset, batch, kind, channels_last):
    """The same in PyTorch: cuDNN's benchmark mode, fused Adam, foreach EMA."""
    import torch

    torch.backends.cudnn.benchmark = True
    step = vs_torch.torch_step(preset, batch, kind, 1, channels_last, compiled=False, device="cuda")

    def waited(number):
        value = step(number)
        torch.cuda.synchronize()
        return value

    return waited


def serve(pipe, side, workload, precision):
    """A side's process: build, then one step for each message, and at the end the memory that it held."""
    os.environ["CUPY_TF32"] = str(int(precision == "tf32"))      # read once, at the first matrix product
    preset, batch, kind = WORKLOADS[workload]
    if side == "minddpm":
        from minddpm import backend
        step, memory = minddpm_step(preset, batch, kind), backend.pool_bytes
    else:
        import torch
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        step, memory = torch_step(preset, batch, kind, side == "torch channels_last"), torch.cuda.max_memory_reserved
    pipe.send("ready")
    for number in iter(pipe.recv, None):
        start = time.perf_counter()
        value = step(number)
        pipe.send((time.perf_counter() - start, value))
    pipe.send(memory() / 2**20)


def measure(workload, precision, rounds):
    """{side: its times, values and memory} of one workload.  SystemExit where the sides disagree."""
    sides = vs_torch.started(serve, workload, precision)
    for number in range(WARM_UP + rounds):
        for side in sides.values():
            side.pipe.send(number)
            seconds, value = side.pipe.recv()
            side.wall.append(seconds)
            side.values.append(value)
    vs_torch.ended(sides, f"{workload}, {precision}", AGREE[precision])
    return sides


def row(workload, precision, sides):
    """One line of the table: the better layout of PyTorch over minddpm; above 1 minddpm is faster."""
    times = {name: side.wall[WARM_UP:] for name, side in sides.items()}
    best = min(vs_torch.SIDES[1:], key=lambda name: min(times[name]))
    ours, theirs = times["minddpm"], times[best]
    memory = f"{sides['minddpm'].memory:.0f} | {sides[best].memory:.0f}"
    return (f"| {workload} | {precision} | {1e3 * min(ours):.1f} | {1e3 * min(theirs):.1f} | **{min(theirs) / min(ours):.2f}** | "
            f"{statistics.median(theirs) / statistics.median(ours):.2f} | {memory} |")


def main():
    """Print the table, or, where there is no GPU, the sentence that says why."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; by default all")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps a side (default: %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {min(unknown)}; expected some of {', '.join(WORKLOADS)}")

    from minddpm import backend
    usable, sentence = backend.probe()
    if not usable:
        print(f"gpu_vs_torch.py needs a GPU, but {sentence}", file=sys.stderr)
        sys.exit(2)
    import torch
    if not torch.cuda.is_available():
        print(f"gpu_vs_torch.py needs a PyTorch that sees the GPU, but torch {torch.__version__} does not", file=sys.stderr)
        sys.exit(2)
    facts = ", ".join(f"{fact} {value}" for fact, value in backend.gpu().items())
    print(f"{date.today()}, {facts}, torch {torch.__version__} eager, {args.rounds} rounds\n\n"
          "| workload | precision | minddpm ms | torch ms | ratio of min | of median | minddpm MB | torch MB |\n"
          "|---|---|---|---|---|---|---|---|")
    for workload in args.workloads or WORKLOADS:
        for precision in AGREE:
            print(row(workload, precision, measure(workload, precision, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
