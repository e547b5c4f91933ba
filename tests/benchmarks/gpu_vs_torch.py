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
from datetime import date

import vs_torch

WORKLOADS = vs_torch.WORKLOADS | {"cifar-train-128": ("cifar10", 128, "train"), "cifar-sample-64": ("cifar10", 64, "sample")}
WARM_UP = 5
AGREE = {"float32": vs_torch.AGREE, "tf32": 3e-2}       # TF32 has 10 bits of mantissa


def waited(side, wait):
    """The same side, whose step ends when the GPU has nothing more to do."""
    def step(batch):
        result = side.step(batch)
        wait()
        return result

    return side._replace(step=step)


def minddpm_side(preset, kind):
    """minddpm's side on the GPU: one worker, which takes a batch whole, and there it is left open."""
    from minddpm.device import choose, cupy
    from minddpm.fast import workers_for

    device = choose("cuda")
    workers = workers_for(device, batch=max(batch for _, batch, _ in WORKLOADS.values())).__enter__()
    return waited(vs_torch.minddpm_side(preset, kind, workers, device), cupy().cuda.Device().synchronize)


def torch_side(preset, kind, channels_last):
    """PyTorch's: cuDNN's benchmark mode, fused Adam, foreach EMA."""
    import torch

    torch.backends.cudnn.benchmark = True
    side = vs_torch.torch_side(preset, kind, 1, channels_last, compiled=False, device="cuda")
    return waited(side, torch.cuda.synchronize)


def serve(pipe, side, workload, precision):
    """A side's process: `vs_torch.serve_steps`, and at the end the memory that it held."""
    os.environ["CUPY_TF32"] = str(int(precision == "tf32"))      # read once, at the first matrix product
    preset, batch, kind = WORKLOADS[workload]
    if side == "minddpm":
        from minddpm.device import pool_bytes
        built, memory = minddpm_side(preset, kind), pool_bytes
    else:
        import torch
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        built, memory = torch_side(preset, kind, side == "torch channels_last"), torch.cuda.max_memory_reserved
    vs_torch.serve_steps(pipe, built, preset, batch)
    pipe.send(memory() / 2**20)


def measure(workload, precision, rounds):
    """{side: its times, values and memory} of one workload.  SystemExit where the sides disagree."""
    sides = vs_torch.started(serve, workload, precision)
    for number in range(WARM_UP + rounds):
        for side in sides.values():
            vs_torch.turn(side, number)
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

    from minddpm.device import gpu, probe
    usable, sentence = probe()
    if not usable:
        print(f"gpu_vs_torch.py needs a GPU, but {sentence}", file=sys.stderr)
        sys.exit(2)
    import torch
    if not torch.cuda.is_available():
        print(f"gpu_vs_torch.py needs a PyTorch that sees the GPU, but torch {torch.__version__} does not", file=sys.stderr)
        sys.exit(2)
    facts = ", ".join(f"{fact} {value}" for fact, value in gpu().items())
    print(f"{date.today()}, {facts}, torch {torch.__version__} eager, {args.rounds} rounds\n\n"
          "| workload | precision | minddpm ms | torch ms | ratio of min | of median | minddpm MB | torch MB |\n"
          "|---|---|---|---|---|---|---|---|")
    for workload in args.workloads or WORKLOADS:
        for precision in AGREE:
            print(row(workload, precision, measure(workload, precision, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
