"""What the figures' demos share: the run they look at, its network behind a progress bar, and sheets of pictures with words.

    python demos/fig6_progressive.py [--run DIR] [--out F.png] [-n N] [--seed S] [--smoke] ...

A run is what `minddpm train` and `minddpm demo` leave behind, or any diffusers DDPMPipeline folder together with --data.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minddpm import data
from minddpm import device as backend
from minddpm.app import cli, run, settings
from minddpm.app import pictures as images
from minddpm.app.evaluate import choose, data_of
from minddpm.app.progress import Progress
from minddpm.data import Dataset
from minddpm.errors import UserError
from minddpm.fast.workers import Workers
from minddpm.model import Model
from minddpm.sample import in_parallel
from minddpm.storage import files, load

RUN = "runs/demo"           # what `minddpm demo` trains
CELL = 64                   # pixels: about the size of an image on a sheet
TEXT = 14                   # pixels: the size of letters
MARGIN = 8                  # pixels

SMOKE = settings.Settings(data="digits", steps=10, batch=16, T=20, beta_1=0.005, beta_T=0.5, ema=0.5, warmup=1, save_every=0,
                          sample_every=0)


def parser(doc, out, n, smoke_n=3, images="images"):
    """The command line of a demo; doc is its docstring, out the default picture, n the default number of images."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.set_defaults(default_n=n, smoke_n=smoke_n)
    p.add_argument("--run", metavar="DIR", help=f"the run's folder (default: {RUN}, trained first if it is not there)")
    p.add_argument("--data", metavar="NAME|PATH", help="the data, where the folder does not say which it was trained on")
    p.add_argument("--out", metavar="F.png", default=out, help="the picture (default: %(default)s)")
    p.add_argument("-n", type=int, metavar="N", help=f"{images} (default: {n})")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other pictures (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="K", help="worker threads; by default one a CPU")
    p.add_argument("--device", choices=backend.DEVICES, default="auto", help="where to compute (default: %(default)s)")
    p.add_argument("--smoke", action="store_true", help="try the code: a toy, trained for ten steps, and few images")
    return p


def start(main):
    """Run a demo as a program: what its user can put right ends it with one sentence and exit code 2."""
    try:
        main()
    except UserError as e:
        print(f"{Path(sys.argv[0]).name}: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        sys.exit(130)


@dataclass
class Trained:
    """A trained model, its data, and who computes."""

    model: Model
    dataset: Dataset
    workers: Workers
    device: str
    n: int

    @property
    def shape(self):
        """(n, H, W, C)."""
        return self.n, *self.dataset.image_shape

    @property
    def how(self):
        """p_θ as the model has it: arguments of the sampler."""
        return dict(sigma2=self.model.sigma2, clip=self.model.clip, predicts=self.model.predicts)

    @property
    def like(self):
        """An array of the dtype and device to work in."""
        return backend.to_device(np.zeros(0, np.float32), self.device)

    def held_out(self, n, seed):
        """n images that the network has never seen, chosen at random, in [-1,1]."""
        chosen = choose(self.dataset.held_out, n, seed)
        if len(chosen) < n:
            raise UserError(f"-n asks for {n} held-out images, but {self.dataset.name} has {len(chosen)}; expected fewer")
        return backend.to_device(data.scale(chosen, self.dataset.levels), self.device)

    @contextlib.contextmanager
    def network(self, name, calls):
        """eps_theta(x_t, t), computed by the workers, and a bar that is full after so many calls."""
        parallel = in_parallel(self.model.eps_theta, self.workers)
        with Progress(name, calls, "step") as progress:

            def eps_theta(x_t, t):
                output = parallel(x_t, t)
                progress.update(f"t = {t}")
                return output

            yield eps_theta


@contextlib.contextmanager
def trained(args):
    """The run that the command line names -> Trained.  UserError: no such run, or -n is no number of images."""
    n = (args.smoke_n if args.smoke else args.default_n) if args.n is None else args.n
    if n < 1:
        raise UserError(f"-n is {n}; expected at least 1")
    device = backend.choose(args.device)
    with _folder(args) as folder:
        model = load(folder, device)
        dataset = data_of(folder, model, args.data)
    with run.workers_for(settings.Settings(threads=args.threads, batch=max(64, n)), device) as workers:
        yield Trained(model, dataset, workers, device, n)


@contextlib.contextmanager
def _folder(args):
    if args.smoke and args.run is None:
        with tempfile.TemporaryDirectory() as folder:
            toy = run.begin(Path(folder) / "run", SMOKE)
            run.train(toy)
            yield toy.folder
    else:
        if args.run is None and not Path(RUN).exists():
            print(f"{RUN} is not there yet: training it first, as `minddpm demo` does")
            if code := cli.main(["demo", "--out", RUN, "--device", args.device]):
                sys.exit(code)
        yield Path(args.run or RUN)


def times(T, parts):
    """T, (parts − 1)/parts T, …, T/parts, and 1, as whole numbers."""
    return sorted({max(1, T * k // parts) for k in range(parts + 1)}, reverse=True)


def sheet(path, x, columns, caption, rows=(), cell=CELL, gap=1):
    """x (R,C,H,W,channels) in [-1,1] -> a PNG of R rows and C columns of images, a word at each, and a caption below them.

    cell: about the height of an image on paper.  gap: between images, in pixels of theirs.
    """
    from PIL import Image, ImageDraw, ImageFont
    R, C, H, W, channels = x.shape
    scale = max(1, round(cell / H))
    pixels = images.grid(images.to_uint8(backend.to_host(x)).reshape(R * C, H, W, channels), columns=C, scale=scale, gap=gap)
    font = ImageFont.load_default(TEXT)
    left = 2 * MARGIN + round(max(map(font.getlength, rows))) if rows else MARGIN
    top, line = 2 * MARGIN + TEXT, round(1.3 * TEXT)
    width = max(left + pixels.shape[1] + MARGIN, 40 * TEXT)
    words = _wrap(caption, font, width - 2 * MARGIN)
    height = top + pixels.shape[0] + MARGIN + line * len(words) + MARGIN
    paper = Image.new("RGB", (width, height), "white")
    paper.paste(Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()), (left, top))
    draw = ImageDraw.Draw(paper)
    for c, word in enumerate(columns):
        draw.text((left + (c * (W + gap) + W / 2) * scale, top - MARGIN / 2), word, "black", font, anchor="ms")
    for r, word in enumerate(rows):
        draw.text((left - MARGIN, top + (r * (H + gap) + H / 2) * scale), word, "black", font, anchor="rm")
    for k, text in enumerate(words):
        draw.text((MARGIN, top + pixels.shape[0] + MARGIN + k * line), text, "black", font)
    images.save_png(path, np.asarray(paper))
    print(f"wrote {Path(path).absolute()}")


def figure():
    """Matplotlib's axes, and a function that saves them to a path.  UserError: it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UserError("this demo draws with matplotlib, which is not installed: pip install 'minddpm[plots]'") from e
    paper = Figure(figsize=(7, 4.5), layout="constrained")

    def save(path):
        buffer = io.BytesIO()
        paper.savefig(buffer, format="png", dpi=130)
        files.write(Path(path), buffer.getvalue())
        print(f"wrote {Path(path).absolute()}")

    return paper.subplots(), save


def _wrap(text, font, width):
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
