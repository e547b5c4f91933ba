"""Fig. 8, Sec. 4.4.  Interpolation of held-out images: mixed where they are half noise, at x_t, and decoded from there.

    python demos/fig8_interpolation.py [--run runs/demo] [--out fig8_interpolation.png] [-n 6] [--t 250]

The paper has t = 500 for faces of 256x256 pixels, which are still visible there, as the noise of many pixels averages out.
Nothing of a 16x16 digit is visible at t = 500, so the default here is t = T/4.
"""

import common
import numpy as np

from minddpm.errors import UserError
from minddpm.sample import interpolate

LAMBDAS = np.arange(11) / 10


def main(argv=None):
    """Draw a row for each pair of images: source, reconstruction, λ = 0.1, …, 0.9, reconstruction, source."""
    parser = common.parser(__doc__, "fig8_interpolation.png", n=6, images="pairs of images")
    parser.add_argument("--t", type=int, help="how far towards noise (default: T/4; the paper's is T/2)")
    args = parser.parse_args(argv)
    with common.trained(args) as run:
        s = run.model.schedule
        t = s.T // 4 if args.t is None else args.t
        if not 0 <= t <= s.T:
            raise UserError(f"--t is {t}; expected 0..{s.T}")
        x0, x0_prime = pairs(run, args.seed)
        with run.network("interpolation", t) as output:
            x_bar = interpolate(s, output, x0, x0_prime, LAMBDAS, t, args.seed, **run.model.how)
    common.sheet(args.out, np.stack([x0, *x_bar, x0_prime], axis=1), HEADINGS,
                 f"Fig. 8. Two held-out images, diffused to t = {t}, mixed there as (1 - lambda) x_t + lambda x_t', and "
                 "decoded by the reverse process with the same noise for each lambda. rec.: lambda = 0 and 1.")


HEADINGS = ["source", "rec.", *(f"{lam:.1f}" for lam in LAMBDAS[1:-1]), "rec.", "source"]


def pairs(run, seed):
    """n held-out images x_0, and n others x_0' from further on in the data set, which may be sorted by class."""
    x0 = run.held_out(2 * run.n, seed)
    return x0[:run.n], x0[run.n:]


if __name__ == "__main__":
    common.start(main)
