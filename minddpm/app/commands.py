"""What each command of the command line does, given its parsed arguments."""

import shlex
import time
from dataclasses import fields, replace
from pathlib import Path

import minddpm
from minddpm import data
from minddpm import device as backend
from minddpm.app import generate, run, settings
from minddpm.app import pictures as images
from minddpm.app.dry_run import estimate, seconds_per_step
from minddpm.app.evaluate import report
from minddpm.app.progress import clock
from minddpm.app.selftest import selftest as run_checks
from minddpm.errors import UserError
from minddpm.readalong import show


def demo(args):
    """Train on mnist16 for about --minutes, then sample 64 digits: the whole method in a coffee break."""
    folder = Path(args.out).absolute()
    print(backend.explain(args.device))
    if (folder / "settings.json").exists():
        print(f"{folder} holds a run: going on with it")
        trained = run.resume(folder)
    else:
        wanted = settings.Settings(data="mnist16", device=args.device, threads=args.threads, batch=32, ema=0.995,
                                   save_every=200, sample_every=0)
        seconds = seconds_per_step(wanted)
        steps = max(1, round(60 * args.minutes / seconds))
        print(f"{seconds:.2f} s a step on this machine: {steps} steps in {args.minutes:g} minutes, then 64 samples")
        trained = run.begin(folder, replace(wanted, steps=steps))
    if not _train(trained):
        return 130
    with run.workers_for(trained.settings, trained.device) as workers:
        film = generate.Film(trained.settings.T)
        x0 = generate.generate(trained.model, 64, args.seed, workers, device=trained.device, on_step=film)
    images.save_png(folder / "samples.png", images.grid(images.to_uint8(x0)))
    film.save(folder / "reverse.gif")
    quoted = shlex.quote(str(folder))
    print(f"\n64 samples:           {folder / 'samples.png'}\nfrom noise to digits: {folder / 'reverse.gif'}\n\n"
          "What to try next:\n"
          f"  minddpm sample {quoted} -n 100 --seed 1        more digits\n"
          f"  minddpm train --resume {quoted} --steps {2 * trained.settings.steps}     train longer, better digits\n"
          "  minddpm train --data faces16                   another data set\n"
          "  minddpm data list                              all of them, and how to use your own images")


def train(args):
    """Alg. 1.  Train a network, or go on with a run."""
    if args.resume is not None:
        others = ["out", "dry_run", *(f.name for f in fields(settings.Settings) if f.name != "steps")]
        if given := [name for name in others if getattr(args, name) is not None]:
            flag = given[0].replace("_", "-")
            raise UserError(f"--resume goes on with the run as it was begun; expected no other flag than --steps, found --{flag}")
        print(backend.explain(settings.read(args.resume).device))
        current = run.resume(args.resume, args.steps)
    else:
        wanted = settings.Settings(**{f.name: value for f in fields(settings.Settings)
                                      if (value := getattr(args, f.name)) is not None})
        print(backend.explain(wanted.device))
        if args.dry_run:
            print(estimate(wanted))
            return 0
        current = run.begin(args.out or _free_folder(wanted), wanted)
    return 0 if _train(current) else 130


def _train(current):
    print(f"run folder: {current.folder}")
    if current.state.step:
        print(f"resumed at step {current.state.step} of {current.settings.steps}")
    quoted, start = shlex.quote(str(current.folder)), time.monotonic()
    finished = run.train(current)
    print(f"{'trained' if finished else 'stopped and saved'}: step {current.state.step} of {current.settings.steps}, "
          f"{clock(time.monotonic() - start)} in this session\n"
          f"run folder:  {current.folder}\n"
          f"resume it:   minddpm train --resume {quoted}{f' --steps {2 * current.settings.steps}' if finished else ''}\n"
          f"sample from: minddpm sample {quoted}")
    return finished


def sample(args):
    """Alg. 2.  Draw samples from a trained model, a run's folder or any diffusers DDPMPipeline's."""
    device = backend.choose(args.device)
    model = minddpm.load(args.folder, device)
    if args.n < 1 or args.batch < 1:
        raise UserError(f"-n is {args.n} and --batch {args.batch}; expected at least 1 of each")
    film = generate.Film(model.schedule.T) if args.gif else lambda k, t, x_t: None
    with run.workers_for(settings.Settings(threads=args.threads, batch=args.batch), device) as workers:
        x0 = generate.generate(model, args.n, args.seed, workers, args.batch, args.sigma2, False if args.no_clip else None,
                               device, film)
    x = images.to_uint8(x0)
    out = Path(args.out or Path(args.folder) / "samples.png")
    images.save_png(out, images.grid(x))
    written = [out]
    if args.gif:
        film.save(args.gif)
        written.append(args.gif)
    if args.npz:
        generate.save_npz(args.npz, x)
        written.append(args.npz)
    if args.png_dir:
        generate.save_png_folder(args.png_dir, x)
        written.append(args.png_dir)
    print("\n".join(f"wrote {Path(path).absolute()}" for path in written))


def evaluate(args):
    """Table 1.  Bits/dim of a trained model, with their parts, and how its samples compare with the data."""
    report(args.folder, args.n, args.data, args.bpd, args.json, args.seed, args.threads, args.device)


def paper(args):
    """The paper's equations, algorithms, tables and figures, each with the code that computes it and its tests."""
    return show.command(args.item, args.run, args.readme)


def selftest(args):
    """Check that this machine computes what it should, and print a report to paste; exit code 1 where a check failed.

    In float32 on the device against float64 in NumPy: every layer and loss with its gradient, the U-Net, the GPU's kernels
    against plain code, 20 steps of training and of sampling.  Then times and memory.
    """
    tf32 = backend.without_tf32()
    device = backend.choose(args.device)
    print(backend.explain(args.device))
    if device == "cuda":
        if tf32 not in (None, "0"):
            print(f"CUPY_TF32={tf32} is not heeded here: what is checked is float32")
        print("each kernel is compiled when it is first used, which takes minutes, once")
    return 0 if run_checks(device) else 1


def data_list(args):
    """The built-in data sets and what else can be read."""
    width = max(map(len, data.BUILT_IN))
    for name, description in data.BUILT_IN.items():
        print(f"{name:{width}}  {description}")
    print("\nYour own: a folder of pictures; .npz or .npy, uint8 (N,H,W[,C]); MNIST idx files, or their folder; CIFAR-10 binary\n"
          "batches, their folder, or cifar-10-binary.tar.gz.  Square images of 8, 16, 28, 32 or 256 pixels fit a preset.")


def data_preview(args):
    """A picture of the first images of a data set, and its sizes."""
    dataset = data.load(args.name)
    shown = dataset.train[np_spread(len(dataset.train), args.n)]
    out = Path(args.out or f"{dataset.name}.png").absolute()
    images.save_png(out, images.grid(images.to_uint8(data.scale(shown, dataset.levels), dataset.levels)))
    print(f"{dataset.name}: {len(dataset.train)} images to train on, {len(dataset.held_out)} held out, "
          f"{'x'.join(map(str, dataset.image_shape))}, {dataset.levels} levels\nwrote {out}")


def np_spread(n, wanted):
    """`wanted` indices spread evenly over n, as sets may be sorted by class."""
    return [k * n // min(n, wanted) for k in range(min(n, wanted))]


def _free_folder(wanted):
    name = f"{Path(wanted.data).resolve().name.split('.')[0]}-{wanted.objective}"
    folder, k = Path("runs") / name, 1
    while folder.exists():
        k += 1
        folder = Path("runs") / f"{name}-{k}"
    return folder
