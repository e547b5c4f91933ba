"""Sec. 4, App. B.  The paper's CIFAR-10 model on a GPU: 35,746,307 parameters, 128 images a step, 800,000 steps.

    python demos/gpu_cifar10.py cifar-10-binary.tar.gz [--out runs/cifar10] [--steps 800000] [--batch 128] [--tf32]

The data are CIFAR-10's "binary version", the archive or its folder.  Ctrl-C saves and stops; the same command goes on from there.
Pictures of 16 samples, always of the same noise, are in samples/ of the run's folder, and at the end samples.png with 64.
--tf32 rounds the factors of matrix products to TF32's 10 bits of mantissa, which newer GPUs multiply faster; all else is float32.
This has not been run on a GPU yet; `minddpm selftest` shows whether yours computes what it should.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import common
import numpy as np

from minddpm.app import loop, run, settings
from minddpm.app.generate import BATCH, generate
from minddpm.app.pictures import grid, save_png, to_uint8
from minddpm.errors import UserError
from minddpm.fast import device, workers_for
from minddpm.unet import UNetConfig

TOY = replace(UNetConfig.cifar10(), widths=(8, 16, 16, 16), blocks=1, groups=4)


def main(argv=None):
    """Begin the run, or go on with it, and draw samples at the end."""
    args = parser().parse_args(argv)
    if args.tf32:
        os.environ["CUPY_TF32"] = "1"                   # CuPy reads it once, at its first matrix product: before the probe's
    with ExitStack() as smoke:
        if args.smoke:
            scratch = Path(smoke.enter_context(tempfile.TemporaryDirectory()))
            smoke.enter_context(patch.dict(settings.PRESETS, cifar10=lambda channels=3: TOY))
            requested = replace(common.SMOKE, data=made_up(scratch / "data"), preset="cifar10", device="cpu", batch=4, steps=3,
                                sample_every=3)
            train(scratch / "run", requested, n=4)
        elif args.data is None:
            raise UserError("no data: expected CIFAR-10's binary version, cifar-10-binary.tar.gz or its folder")
        else:
            train(Path(args.out), settings.Settings(
                data=args.data, preset="cifar10", device="cuda", steps=args.steps, batch=args.batch, seed=args.seed,
                save_every=args.sample_every, sample_every=args.sample_every))


def parser():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", nargs="?", metavar="PATH", help="cifar-10-binary.tar.gz, or its folder")
    p.add_argument("--out", default="runs/cifar10", metavar="DIR", help="the run's folder (default: %(default)s)")
    p.add_argument("--steps", type=int, default=800_000, metavar="N", help="training steps in all (default: %(default)s)")
    p.add_argument("--batch", type=int, default=128, metavar="B", help="images a step (default: %(default)s)")
    p.add_argument("--sample-every", type=int, default=5_000, metavar="N",
                   help="steps between two saves, each with a picture (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of training and sampling (default: %(default)s)")
    p.add_argument("--tf32", action="store_true", help="matrix products in TF32")
    p.add_argument("--smoke", action="store_true", help="try the code: made-up images and a toy network, on the CPU")
    return p


def train(folder, requested, n=64):
    """Train the run in the folder, a new one or one to go on with, and write samples.png with n samples."""
    print(device.explain(requested.device))
    exists = (folder / "settings.json").exists()
    trained = run.resume(folder, requested.steps) if exists else run.begin(folder, requested)
    print(f"run folder: {trained.folder}, step {trained.state.step} of {requested.steps}", flush=True)
    if not loop.train(trained):
        print("stopped and saved; the same command goes on")
        raise KeyboardInterrupt
    with workers_for(trained.device, trained.settings.threads, BATCH) as workers:
        x0 = generate(trained.model, n, requested.seed, workers)
    save_png(trained.folder / "samples.png", grid(to_uint8(x0)))
    print(f"wrote {trained.folder / 'samples.png'}")


def made_up(folder):
    """Write a CIFAR-10 binary batch of 20 images of noise into a new folder; its path as text."""
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (20, 1 + 3 * 32 * 32), dtype=np.uint8)
    records[:, 0] %= 10
    (folder / "data_batch_1.bin").write_bytes(records.tobytes())
    return str(folder)


if __name__ == "__main__":
    common.start(main)
