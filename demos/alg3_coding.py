"""Alg. 3, 4, Sec. 4.3.  Held-out digits sent and received for real, every bit counted and set beside those of Eq. (5).

    python demos/alg3_coding.py [--run runs/digits] [--out alg3_coding.gif] [-n 100] [--first 100] [--steps 12]

1. On 2-D Gaussian data, where the best ε_θ is known and nothing is trained: Eq. (5) against the entropy of the data, the bits
   that were sent against both, and a test whether every x_t that is received follows q.
2. On 8x8 digits with the network in --run, trained first if it is not there (about 8 minutes): the bits of each step, and a film
   of the receiver's x̂_0, Eq. (15), as the bits come in.  The last frame shows the digits, bit for bit.

The chain that is coded goes through --steps of the network's times, from --first on; minddpm/coding/progressive.py explains why.
With a later --first more of x_0 is left to the range coder of Eq. (13), which has no overhead, and the film is shorter.
"""

import math
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from scipy import stats

from minddpm import coding, data, load
from minddpm.app import cli, loop
from minddpm.app.pictures import grid, save_gif, to_uint8
from minddpm.app.run import begin
from minddpm.diffusion import Schedule, q_posterior
from minddpm.errors import UserError
from minddpm.random import rng

RUN = "runs/digits"
COV = np.array([[0.08, 0.05], [0.05, 0.06]])                # of the 2-D data
POINTS = 32                                                 # of the 2-D data, coded together as one image
SHOWN = 25                                                  # digits in the film
HOLD = 8                                                    # repetitions of the last frame


def main(argv=None):
    """Run both parts."""
    parser = common.parser(__doc__, "alg3_coding.gif", n=100, smoke_n=4)
    parser.add_argument("--first", type=int, default=100, metavar="T", help="the lowest time of the chain (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="times of the chain (default: %(default)s)")
    args = parser.parse_args(argv)
    gaussian_data(n=10 if args.smoke else 200, seed=args.seed)
    digits(args)


# ---- 2-D Gaussian data


def gaussian_data(n, seed):
    """Send and receive n times POINTS points of N(0, COV), rounded to 256 levels, and print the report."""
    s = coding.respaced_schedule(Schedule.linear(), times_even_in_log_snr(Schedule.linear(), 5, 8))
    codec = coding.calibrate(s, best_eps(s), draw(200, seed, 1), 256, clip=False)
    x0 = draw(n, seed, 0)
    sent = coding.send(codec, x0, seed)
    steps = list(coding.receive(codec, sent.message, n, seed))
    entropy = POINTS * (0.5 * math.log2(np.linalg.det(2 * math.pi * math.e * COV)) - 2 * math.log2(2 / 255))
    print(f"2-D Gaussian data, {n} times {POINTS} points, ε* in closed form; bits for {POINTS} points\n\n"
          f"{report(sent)}\n\n"
          f"entropy {entropy:.2f} <= Eq. (5) {sent.kl.sum(1).mean():.2f} <= sent {sent.bits.sum(1).mean():.2f} "
          f"<= bound {(sent.bound + sent.class_bits).sum(1).mean():.2f}, the theorem's bits and the classes'\n"
          f"received {exact(steps[-1].x_t, x0)}\n"
          f"x_t given x_(t+1) and x_0, in units of q, should be N(0, 1): {law(s, x0, steps)}\n")


def draw(n, seed, part):
    """Draws of the data as integers 0..255: (n, POINTS, 2), others for each part."""
    return data.unscale(rng("choice of images", seed, part).multivariate_normal([0, 0], COV, (n, POINTS)), 256)


def best_eps(s):
    """The best ε_θ for N(0, COV): E[x_0 | x_t] = √ᾱ_t COV (ᾱ_t COV + (1 − ᾱ_t) I)⁻¹ x_t, and Eq. (15) solved for ε."""

    def eps_theta(x_t, t):
        a, b = math.sqrt(s.alpha_bar[t]), 1 - s.alpha_bar[t]
        x0 = x_t @ np.linalg.solve(a * a * COV + b * np.eye(2), a * COV)
        return ((x_t - a * x0) / math.sqrt(b)).astype(x_t.dtype)

    return eps_theta


def law(s, x0, steps):
    """Mean, variance and Kolmogorov-Smirnov p-value of all (x_t − μ̃) / √β̃ together, as a text."""
    x, u = {step.t: step.x_t.astype(np.float64) for step in steps}, []
    for t in range(s.T - 1, 0, -1):
        mean, var = q_posterior(s, data.scale(x0).astype(np.float64), x[t + 1], t + 1)
        u.append((x[t] - mean) / math.sqrt(var))
    u = np.array(u)
    return (f"mean {u.mean():+.4f} (±{1 / math.sqrt(u.size):.4f}), variance {u.var():.4f} (±{math.sqrt(2 / u.size):.4f}), "
            f"p = {stats.kstest(u.ravel(), 'norm').pvalue:.2f}")


def exact(x, x0):
    """The end of the sentence "received ...", for x received and x0 sent."""
    return "bit for bit what was sent" if np.array_equal(x, x0) else "SOMETHING ELSE than was sent"


# ---- digits


def digits(args):
    """Send and receive n held-out digits of the run's data; print the report and write the film."""
    with tempfile.TemporaryDirectory() as toy:
        folder = Path(args.run or RUN)
        if args.smoke and args.run is None:
            folder = Path(toy) / "run"
            loop.train(begin(folder, common.SMOKE))
        elif not folder.exists():
            print(f"{folder} is not there yet: training it first")
            if code := cli.main(["train", "--data", "digits", "--steps", "2500", "--out", str(folder)]):
                raise SystemExit(code)
        model = load(folder)
        dataset = common.data_of(folder, model, args.data)
    n = args.n or (args.smoke_n if args.smoke else args.default_n)
    x0 = common.choose(dataset.held_out, n, args.seed)
    times, codec = codec_of(model, dataset, args)

    start = time.monotonic()
    sent = coding.send(codec, x0, args.seed)
    middle = time.monotonic()
    film = Film(len(x0), dataset.levels)
    for step in coding.receive(codec, sent.message, len(x0), args.seed):
        film.add(step, times)
    print(f"{len(x0)} held-out images of {dataset.name}; bits an image; t in the network's own time\n\n"
          f"{report(sent, times)}\n\n{account(sent, dataset)}\nreceived {exact(step.x_t, x0)}; sent in "
          f"{middle - start:.1f} s, received in {time.monotonic() - middle:.1f} s")
    film.save(args.out)


def codec_of(model, dataset, args):
    """The times of the chain, and a codec for it that is calibrated on 200 training images."""
    s = model.schedule
    first, steps = (min(2, s.T - 1), 5) if args.smoke else (args.first, args.steps)
    if not (1 <= first < s.T and steps >= 2):
        raise UserError(f"--first is {first} and --steps {steps}; expected 1..{s.T - 1}, and at least 2")
    times = times_even_in_log_snr(s, first, steps)
    train_images = common.choose(dataset.train, 50 if args.smoke else 200, args.seed)
    return times, coding.calibrate(coding.respaced_schedule(s, times), lambda x_t, t: model.eps_theta(x_t, times[t - 1]),
                                   train_images, dataset.levels, clip=model.clip, predicts=model.predicts)


def times_even_in_log_snr(s, first, steps):
    """At most `steps` times from `first` to T, evenly spaced in log ᾱ_t/(1 − ᾱ_t), where the KLs of the steps are about alike."""
    log_snr = np.log(s.alpha_bar[1:]) - np.log1p(-s.alpha_bar[1:])
    even = np.linspace(log_snr[first - 1], log_snr[-1], steps)
    return sorted({int(np.argmin(np.abs(log_snr - value))) + 1 for value in even})


def report(sent, times=None):
    """Sec. 4.3.  The costs of a message as a table: bits an image in each step, beside L_t of Eq. (5).

    times: for a respaced schedule its times, which name the rows in place of 1..T.
    """
    def row(name, bits, L, bound, class_bits, blocks):
        each = (bits - L - class_bits) / blocks if blocks else 0.0
        return f"{name:>5} {L:9.2f} {bits:9.2f} {bits - L:9.2f} = {class_bits:5.2f} + {blocks:5.2f} x {each:5.2f} {bound:9.2f}"

    T = sent.bits.shape[1] - 1
    rows = [row(times[t - 1] if times and t else t, *(column[:, t].mean() for column in sent[1:])) for t in range(T, -1, -1)]
    total = row("all", *(column.sum(1).mean() for column in sent[1:]))
    return "\n".join(["    t       L_t      sent  overhead = class + blocks x  each     bound", *rows, total])


def account(sent, dataset):
    """The bits of the message beyond those of Eq. (5), by their causes, as a text."""
    bits, L, bound, class_bits, blocks = (column.sum(1).mean() for column in sent[1:])
    plain = math.prod(dataset.image_shape) * math.log2(dataset.levels)
    return (f"Eq. (5) {L:.1f} bits; sent {bits:.1f}; allowed {bound + class_bits:.1f}; the pixels as they are {plain:.1f}\n"
            f"The overhead of {bits - L:.1f} bits: {class_bits:.1f} for the classes, {bits - L - class_bits:.1f} for "
            f"{blocks:.1f} indices of a draw, {(bits - L - class_bits) / blocks:.1f} each (Li and El Gamal: at most log2(KL + 1) "
            f"+ 4; Harsha et al.: 2 log2(KL + 1) + O(1)); x_0 itself has no overhead.\n"
            f"The message has {len(sent.message)} bytes, "
            f"{8 * len(sent.message) / len(sent.bits):.1f} bits an image with its check sum.")


class Film:
    """The receiver's x̂_0 of the first of n digits, a frame for each step, with the bits received so far written below."""

    def __init__(self, n, levels):
        self.frames, self.n, self.levels = [], n, levels

    def add(self, step, times):
        """Add the frame of a step."""
        picture = grid(to_uint8(step.x0_hat[:SHOWN], self.levels), scale=10)
        t = times[step.t - 1] if step.t else 0
        what = "x0, exact" if step.t == 0 else "x0_hat"
        self.frames.append(with_words(picture, f"t = {t:4}   {step.bits / self.n:6.1f} bits a digit   {what}"))

    def save(self, path):
        """Write the GIF.  UserError: it cannot be written."""
        save_gif(path, self.frames + self.frames[-1:] * HOLD, fps=2)
        print(f"wrote {Path(path).absolute()}")


def with_words(picture, words):
    """A picture (H,W,C) on white with a line of text below it: (H',W',3)."""
    from PIL import Image, ImageDraw, ImageFont
    font, margin = ImageFont.load_default(common.TEXT), common.MARGIN
    width = max(picture.shape[1] + 2 * margin, 26 * common.TEXT)
    paper = Image.new("RGB", (width, picture.shape[0] + 3 * margin + common.TEXT), "white")
    rgb = np.broadcast_to(picture, (*picture.shape[:2], 3)).copy()
    paper.paste(Image.fromarray(rgb), ((width - picture.shape[1]) // 2, margin))
    ImageDraw.Draw(paper).text((margin, picture.shape[0] + 2 * margin), words, "black", font)
    return np.asarray(paper)


if __name__ == "__main__":
    common.start(main)
