"""Fig. 8, Sec. 4.4.  Interpolation of held-out images: mixed where they are half noise, at x_t, and decoded from there.

    python demos/fig8_interpolation.py [--run runs/demo] [--out fig8_interpolation.png] [-n 6] [--t 250]

The paper has t = 500 for faces of 256x256 pixels, which one still sees there: the noise of many pixels averages out.  Of a
digit of 16x16 nothing is left at t = 500, so here t = T/4 unless --t says otherwise.
"""

import common
import numpy as np

from minddpm.errors import UserError
from minddpm.sample import interpolate

LAMBDAS = np.arange(11) / 10


def main(argv=None):
    """A row for each pair of images: source, reconstruction, λ = 0.1, …, 0.9, reconstruction, source."""
    parser = common.parser(__doc__, "fig8_interpolation.png", n=6, images="pairs of images")
    parser.add_argument("--t", type=int, help="how far towards noise (default: T/4; the paper's is T/2)")
    args = parser.parse_args(argv)
    with common.trained(args) as model:
        s = model.model.schedule
        t = s.T // 4 if args.t is None else args.t
        if not 0 <= t <= s.T:
            raise UserError(f"--t is {t}; expected 0..{s.T}")
        x0, x0_prime = pairs(model, args.seed)
        with model.network("interpolation", t) as eps_theta:
            x_bar = interpolate(s, eps_theta, x0, x0_prime, LAMBDAS, t, args.seed, **model.how)
    common.sheet(args.out, np.stack([x0, *x_bar, x0_prime], axis=1), HEADINGS,
                 f"Fig. 8. Two held-out images, diffused to t = {t}, mixed there as (1 - lambda) x_t + lambda x_t', and "
                 "taken back by the reverse process with the same noise for each lambda. rec.: lambda = 0 and 1.")


HEADINGS = ["source", "rec.", *(f"{lam:.1f}" for lam in LAMBDAS[1:-1]), "rec.", "source"]


def pairs(model, seed):
    """n held-out images x_0, and n others x_0' from further on in the files, which may be sorted by class."""
    x0 = model.held_out(2 * model.n, seed)
    return x0[:model.n], x0[model.n:]


if __name__ == "__main__":
    common.start(main)
