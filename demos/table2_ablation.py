"""Table 2.  Six objectives, one network: what it predicts, μ̃ or ε, and what it is trained on, L or a squared error.

    python demos/table2_ablation.py [--out runs/table2] [--steps 1500] [-n 256] [--data digits]

Each row is trained for the same steps on the same batches and samples from the same noise.  The paper measures Inception
Score and FID on CIFAR10; this is the Fréchet distance in the pixels' principal components: compare it with the distances of real
images and of noise only.  A row is blank, as in the paper, if training ends in numbers that are not finite or the samples are
farther from the data than noise is.  The runs stay in --out: a second call goes on from them.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np

from minddpm import data
from minddpm.app import loop, run
from minddpm.app.evaluate import choose
from minddpm.app.generate import BATCH, generate
from minddpm.app.metrics import frechet, pca
from minddpm.app.settings import Settings
from minddpm.device import DEVICES
from minddpm.errors import UserError
from minddpm.fast import workers_for
from minddpm.random import rng


class Row(NamedTuple):
    """A row of Table 2: the objective as --objective names it and as the paper does, and the paper's scores."""

    objective: str
    predicts: str
    loss: str
    IS: str
    FID: str


TABLE = [
    Row("mu-L-learned",  "μ̃ prediction", "L, learned diagonal Σ", "7.28", "23.69"),
    Row("mu-L",          "μ̃ prediction", "L, fixed isotropic Σ",  "8.06", "13.22"),
    Row("mu-mse",        "μ̃ prediction", "‖μ̃ − μ̃_θ‖²",            "",     ""),
    Row("eps-L-learned", "ε prediction", "L, learned diagonal Σ", "",     ""),
    Row("eps-L",         "ε prediction", "L, fixed isotropic Σ",  "7.67", "13.51"),
    Row("simple",        "ε prediction", "‖ε̃ − ε_θ‖² (L_simple)", "9.46", "3.17"),
]
SHOWN = 8                   # samples a row in the picture


def main(argv=None):
    """Train the rows, print the table, and write a picture of the samples."""
    args = parser().parse_args(argv)
    if args.n < 2:
        raise UserError(f"-n is {args.n}; expected at least 2")
    with tempfile.TemporaryDirectory() as scratch:
        ablation(args, Path(scratch if args.smoke else args.out))


def parser():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="digits", metavar="NAME|PATH", help="the images (default: %(default)s)")
    p.add_argument("--steps", type=int, default=1500, metavar="N", help="training steps a row (default: %(default)s)")
    p.add_argument("-n", type=int, default=256, metavar="N", help="samples a row (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of training and sampling (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="K", help="worker threads; by default one a CPU")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: %(default)s)")
    p.add_argument("--out", metavar="DIR", default="runs/table2", help="the runs' folder (default: %(default)s)")
    p.add_argument("--picture", metavar="F.png", default="table2_ablation.png", help="the samples (default: %(default)s)")
    p.add_argument("--smoke", action="store_true", help="try the code: ten steps a row, T = 20, and few samples")
    return p


def ablation(args, folder):
    """The whole demo with its runs in the folder."""
    requested = Settings(data=args.data, steps=args.steps, seed=args.seed, threads=args.threads, device=args.device,
                         ema=0.995, save_every=0, sample_every=0)
    if args.smoke:
        args.n = min(args.n, 16)
        requested = replace(common.SMOKE, threads=args.threads, device=args.device)
    dataset = data.load(requested.data)
    levels, train = dataset.levels, data.scale(dataset.train, dataset.levels)
    features = pca(train)
    reference = features(train)

    def distance(x):
        return frechet(features(data.scale(data.unscale(x, levels), levels)), reference)

    noise = distance(rng("images of noise", args.seed).standard_normal((args.n, *dataset.image_shape)))
    real = [distance(data.scale(choose(dataset.train, args.n, seed), levels)) for seed in range(20)]
    distances, samples = [], []
    for row in TABLE:
        print(f"\n{row.predicts}, {row.loss}  (--objective {row.objective})", flush=True)
        x0 = trained_samples(folder / row.objective, replace(requested, objective=row.objective), args.n, args.seed)
        distances.append(distance(x0) if x0 is not None else np.inf)
        samples.append(np.zeros((SHOWN, *dataset.image_shape)) if x0 is None else x0[:SHOWN])
    print_table(requested, dataset, args.n, distances, noise, real)
    blank = ["" if d < noise else " (blank)" for d in distances]
    common.sheet(args.picture, np.stack(samples), [""] * min(SHOWN, args.n),
                 f"Table 2. Samples after {requested.steps} steps on {dataset.name}; every row from the same noise.",
                 [f"{row.objective}{word}" for row, word in zip(TABLE, blank, strict=True)])


def trained_samples(folder, requested, n, seed):
    """n samples of the run in the folder, trained first where it is not; None if its numbers are not finite."""
    trained = run.resume(folder, requested.steps) if (folder / "settings.json").exists() else run.begin(folder, requested)
    try:
        if not loop.train(trained):
            raise KeyboardInterrupt
    except UserError as e:
        print(e)
        return None
    with workers_for(trained.device, trained.settings.threads, BATCH) as workers, np.errstate(over="ignore", invalid="ignore"):
        x0 = generate(trained.model, n, seed, workers)
    outside = float(np.mean(np.abs(x0) > 1))
    print(f"numbers of the samples outside [-1, 1]: {outside:.1%}")
    return x0 if np.isfinite(x0).all() else None


def print_table(requested, dataset, n, distances, noise, real):
    """Print Table 2's rows, ours and the paper's, the distances to compare them with, and both orders."""
    batch = requested.resolved(dataset.image_shape).batch
    print(f"\nTable 2 on {dataset.name}, {requested.steps} steps of {batch} images a row, {n} samples; "
          "the paper's: CIFAR10, 800,000 steps\n")
    print("objective                               Fréchet distance      paper: IS     FID")
    for predicts in dict.fromkeys(row.predicts for row in TABLE):
        print(predicts)
        for row, d in zip(TABLE, distances, strict=True):
            if row.predicts == predicts:
                found = f"{d:.2f}" if d < noise else "–"
                wide = 36 + row.loss.count("\N{COMBINING TILDE}")
                print(f"  {row.loss:{wide}}  {found:>14}  {row.IS or '–':>15}  {row.FID or '–':>6}")
    print(f"\n{np.mean(real):.2f} ± {np.std(real):.2f} for {n} training images (differences within ± are not significant), "
          f"{noise:.2f} for noise")
    ours = order(distances, noise)
    papers = order([float(row.FID or "inf") for row in TABLE], np.inf)
    print(f"best first, here:  {' < '.join(ours)}\n           paper:  {' < '.join(papers)}")
    if ours != papers:
        print("The orders differ.  The paper's is for a network and a data set a thousand times larger, trained 500 times as "
              "long,\nby another measure; one short run on small images neither confirms nor refutes it.")


def order(scores, worst):
    """The objectives with a score below the worst, best first."""
    named = [(score, row.objective) for score, row in zip(scores, TABLE, strict=True) if score < worst]
    return [name for _, name in sorted(named)]


if __name__ == "__main__":
    common.start(main)
