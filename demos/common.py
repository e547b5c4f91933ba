"""Shared by the demos of the figures: the run, its network with a progress bar, and sheets of images with words.

    python demos/fig6_progressive.py [--run DIR] [--out F.png] [-n N] [--seed S] [--smoke] ...

--run is a folder of `minddpm train` or `minddpm demo`, or any diffusers DDPMPipeline's folder together with --data.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minddpm import Model, data, load
from minddpm.app import cli, loop, run
from minddpm.app.evaluate import choose, data_of
from minddpm.app.generate import BATCH
from minddpm.app.pictures import grid, save_png, to_uint8
from minddpm.app.progress import Progress
from minddpm.app.settings import Settings
from minddpm.data import Dataset
from minddpm.errors import UserError
from minddpm.fast import Workers, parallel, workers_for
from minddpm.fast.device import DEVICES, device_of, to_device, to_host
from minddpm.fast.device import choose as choose_device
from minddpm.storage import files

RUN = "runs/demo"           # the folder of `minddpm demo`
CELL = 64                   # pixels: about the size of an image on a sheet
TEXT = 14                   # pixels: the size of letters
MARGIN = 8                  # pixels

SMOKE = Settings(data="digits", steps=10, batch=16, T=20, beta_1=0.005, beta_T=0.5, ema=0.5, warmup=1, save_every=0,
                 sample_every=0)


def parser(doc, out, n, smoke_n=3, images="images"):
    """The command line of a demo; doc is its docstring, out the default picture, n the default number of images."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.set_defaults(default_n=n, smoke_n=smoke_n)
    p.add_argument("--run", metavar="DIR", help=f"the run's folder (default: {RUN}, trained first if it is not there)")
    p.add_argument("--data", metavar="NAME|PATH", help="the data, for a folder without settings.json")
    p.add_argument("--out", metavar="F.png", default=out, help="the picture (default: %(default)s)")
    p.add_argument("-n", type=int, metavar="N", help=f"{images} (default: {n})")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other pictures (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="K", help="worker threads; by default one a CPU")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: %(default)s)")
    p.add_argument("--smoke", action="store_true", help="try the code: a toy, trained for ten steps, and few images")
    return p


def start(main):
    """Run a demo as a program: an error that the user can fix ends it with one sentence and exit code 2."""
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
    """A trained model, its data, the workers that compute, and the number of images to show."""

    model: Model
    dataset: Dataset
    workers: Workers
    n: int

    @property
    def shape(self):
        """(n, H, W, C)."""
        return self.n, *self.dataset.image_shape

    @property
    def like(self):
        """An array of the model's dtype and device."""
        return self.model.params["conv_in"]["bias"]

    def held_out(self, n, seed):
        """n images that the network was not trained on, chosen at random, in [−1, 1], on the model's device."""
        chosen = choose(self.dataset.held_out, n, seed)
        if len(chosen) < n:
            raise UserError(f"-n needs {n} held-out images, but {self.dataset.name} has {len(chosen)}; expected a smaller -n")
        return to_device(data.scale(chosen, self.dataset.levels), device_of(self.like))

    @contextlib.contextmanager
    def network(self, name, calls):
        """A context: the network's output as a function of x_t and t, computed by the workers, with a progress bar of `calls`."""
        output = parallel(self.model.output, self.workers)
        with Progress(name, calls, "step") as progress:

            def counted_output(x_t, t):
                y = output(x_t, t)
                progress.update(f"t = {t}")
                return y

            yield counted_output


@contextlib.contextmanager
def trained(args):
    """A context: the run that the command line names, as Trained.  UserError: no such run, or -n is less than 1."""
    n = (args.smoke_n if args.smoke else args.default_n) if args.n is None else args.n
    if n < 1:
        raise UserError(f"-n is {n}; expected at least 1")
    device = choose_device(args.device)
    with _folder(args) as folder:
        model = load(folder, device)
        dataset = data_of(folder, model, args.data)
    with workers_for(device, args.threads, max(BATCH, n)) as workers:
        yield Trained(model, dataset, workers, n)


@contextlib.contextmanager
def _folder(args):
    if args.smoke and args.run is None:
        with tempfile.TemporaryDirectory() as folder:
            toy = run.begin(Path(folder) / "run", SMOKE)
            loop.train(toy)
            yield toy.folder
    else:
        if args.run is None and not Path(RUN).exists():
            print(f"{RUN} does not exist yet: training it first by `minddpm demo`")
            if code := cli.main(["demo", "--out", RUN, "--device", args.device]):
                sys.exit(code)
        yield Path(args.run or RUN)


def times(T, parts):
    """T, (parts − 1)/parts T, …, T/parts, and 1, as whole numbers."""
    return sorted({max(1, T * k // parts) for k in range(parts + 1)}, reverse=True)


def sheet(path, x, columns, caption, rows=(), cell=CELL, gap=1):
    """Write x (R,C,H,W,channels) in [−1, 1] as a PNG of R rows and C columns of images, with their names and a caption.

    columns, rows: the names.  cell: about the height of an image, in pixels.  gap: between images, in the images' pixels.
    """
    from PIL import Image, ImageDraw, ImageFont
    R, C, H, W, channels = x.shape
    scale = max(1, round(cell / H))
    pixels = grid(to_uint8(to_host(x)).reshape(R * C, H, W, channels), columns=C, scale=scale, gap=gap)
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
    save_png(path, np.asarray(paper))
    print(f"wrote {Path(path).absolute()}")


def figure():
    """(Matplotlib axes, a function that saves them to a path).  UserError: Matplotlib is not installed."""
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
