"""The commands of the command line, as functions of their parsed arguments; each returns its exit code, None for 0."""

import os
import shlex
import time
from dataclasses import fields, replace
from pathlib import Path

import minddpm
from minddpm import data
from minddpm.app import loop, pictures, settings
from minddpm.app.dry_run import dry_run, seconds_per_step
from minddpm.app.evaluate import report
from minddpm.app.generate import BATCH, generate
from minddpm.app.progress import clock
from minddpm.app.run import begin, resume
from minddpm.app.selftest import selftest as run_checks
from minddpm.errors import UserError
from minddpm.fast import workers_for
from minddpm.fast.device import choose, explain
from minddpm.readalong import show


def demo(args):
    """Train on mnist16 for about --minutes, then sample 64 digits: the whole method in a coffee break."""
    folder = Path(args.out).absolute()
    if (folder / "settings.json").exists():
        print(f"{folder} holds a run: going on with it\n{explain(settings.read(folder).device)}")
        run = resume(folder)
    else:
        print(explain(args.device))
        requested = settings.Settings(data="mnist16", device=args.device, threads=args.threads, batch=32, ema=0.995,
                                      save_every=200, sample_every=0)
        seconds = seconds_per_step(requested)
        steps = max(1, round(60 * args.minutes / seconds))
        print(f"{seconds:.2f} s a step on this machine: {steps} steps in {args.minutes:g} minutes, then 64 samples")
        run = begin(folder, replace(requested, steps=steps))
    if not _train(run):
        return 130
    film = pictures.Film(run.settings.T)
    with workers_for(run.device, run.settings.threads, BATCH) as workers:
        x0 = generate(run.model, 64, args.seed, workers, on_step=film)
    pictures.save_png(folder / "samples.png", pictures.grid(pictures.to_uint8(x0)))
    film.save(folder / "reverse.gif")
    quoted = shlex.quote(str(folder))
    print(f"\n64 samples:           {folder / 'samples.png'}\nfrom noise to digits: {folder / 'reverse.gif'}\n\n"
          "What to try next:\n"
          f"  minddpm sample {quoted} -n 100 --seed 1        more digits\n"
          f"  minddpm train --resume {quoted} --steps {2 * run.settings.steps}     train longer, better digits\n"
          "  minddpm train --data faces16                   another data set\n"
          "  minddpm data list                              all of them, and how to use your own images")


def train(args):
    """Alg. 1.  Train a network, or go on with a run."""
    given = {f.name: value for f in fields(settings.Settings) if (value := getattr(args, f.name)) is not None}
    if args.resume is not None:
        others = [name for name in ("out", "dry_run") if getattr(args, name)] + [name for name in given if name != "steps"]
        if others:
            flag = others[0].replace("_", "-")
            raise UserError(f"--resume goes on with the run as it was begun; expected no other flag than --steps, found --{flag}")
        print(explain(settings.read(args.resume).device))
        run = resume(args.resume, args.steps)
    else:
        requested = settings.Settings(**given)
        print(explain(requested.device))
        if args.dry_run:
            print(dry_run(requested))
            return 0
        run = begin(args.out or _free_folder(requested), requested)
    return 0 if _train(run) else 130


def _train(run):
    print(f"run folder: {run.folder}")
    if run.state.step:
        print(f"resumed at step {run.state.step} of {run.settings.steps}")
    quoted, start = shlex.quote(str(run.folder)), time.monotonic()
    finished = loop.train(run)
    print(f"{'trained' if finished else 'stopped and saved'}: step {run.state.step} of {run.settings.steps}, "
          f"{clock(time.monotonic() - start)} in this session\n"
          f"run folder:  {run.folder}\n"
          f"resume it:   minddpm train --resume {quoted}{f' --steps {2 * run.settings.steps}' if finished else ''}\n"
          f"sample from: minddpm sample {quoted}")
    return finished


def _free_folder(requested):
    name = f"{Path(requested.data).resolve().name.split('.')[0]}-{requested.objective}"
    folder, k = Path("runs") / name, 1
    while folder.exists():
        k += 1
        folder = Path("runs") / f"{name}-{k}"
    return folder


def sample(args):
    """Alg. 2.  Draw samples from a trained model, a run's folder or any diffusers DDPMPipeline's."""
    device = choose(args.device)
    model = minddpm.load(args.folder, device)
    if args.n < 1 or args.batch < 1:
        raise UserError(f"-n is {args.n} and --batch {args.batch}; expected at least 1 of each")
    if args.sigma2 and model.sigma2 == "learned":
        raise UserError(f"sigma2 is {args.sigma2}, but this model has learned its variance; leave --sigma2 out")
    model = replace(model, sigma2=args.sigma2 or model.sigma2, clip=model.clip and not args.no_clip)
    film = pictures.Film(model.schedule.T)
    with workers_for(device, args.threads, args.batch) as workers:
        x0 = generate(model, args.n, args.seed, workers, args.batch, on_step=film if args.gif else None)
    x = pictures.to_uint8(x0)
    _write(args.out or Path(args.folder) / "samples.png", lambda path: pictures.save_png(path, pictures.grid(x)))
    _write(args.gif, film.save)
    _write(args.npz, lambda path: pictures.save_npz(path, x))
    _write(args.png_dir, lambda path: pictures.save_png_folder(path, x))


def _write(path, save):
    if path:
        save(path)
        print(f"wrote {Path(path).absolute()}")


def evaluate(args):
    """Table 1.  Bits/dim of a trained model, with their parts, and how its samples compare with the data."""
    report(args.folder, args.n, args.data, bpd=args.bpd, json=args.json, seed=args.seed, threads=args.threads, device=args.device)


def paper(args):
    """The paper's equations, algorithms, tables and figures, each with the code that computes it and its tests."""
    return show.command(args.item, args.run)


def selftest(args):
    """Check that this machine computes what it should, and print a report to paste; exit code 1 where a check failed.

    The fast layers, on a GPU its kernels, in float32 against the plain ones in float64 in NumPy: every layer and loss with its
    gradient, the U-Net, 20 steps of training and of sampling.
    """
    tf32 = os.environ.pop("CUPY_TF32", None)               # CuPy reads it at its first matrix product, one in choose
    device = choose(args.device)
    print(explain(args.device))
    if device == "cuda":
        if tf32 not in (None, "0"):
            print(f"CUPY_TF32={tf32} is ignored here: the checks are for float32")
        print("each kernel is compiled when it is first used, which takes minutes, once")
    return 0 if run_checks(device) else 1


def data_list(args):
    """The built-in data sets, and the files of your own that can be read."""
    width = max(map(len, data.BUILT_IN))
    for name, description in data.BUILT_IN.items():
        print(f"{name:{width}}  {description}")
    print("\nYour own: a folder of pictures; .npz or .npy, uint8 (N,H,W[,C]); MNIST idx files, or their folder; CIFAR-10 binary\n"
          "batches, their folder, or cifar-10-binary.tar.gz.  Square images of 8, 16, 28, 32 or 256 pixels fit a preset.")


def data_preview(args):
    """A picture of some images of a data set, and its sizes."""
    dataset = data.load(args.name)
    n, count = len(dataset.train), min(len(dataset.train), args.n)
    shown = dataset.train[[k * n // count for k in range(count)]]           # at equal distances: a set may be sorted by class
    out = Path(args.out or f"{dataset.name}.png").absolute()
    x = data.scale(shown, dataset.levels)
    pictures.save_png(out, pictures.grid(pictures.to_uint8(x, dataset.levels)))
    print(f"{dataset.name}: {n} images to train on, {len(dataset.held_out)} held out, "
          f"{'x'.join(map(str, dataset.image_shape))}, {dataset.levels} levels\nwrote {out}")
