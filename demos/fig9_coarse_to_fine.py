"""Fig. 9, Sec. 4.4.  Coarse to fine: one pair of images interpolated at t = 0, T/8, …, T.

    python demos/fig9_coarse_to_fine.py [--run runs/demo] [--out fig9_coarse_to_fine.png]
"""

import common
import numpy as np
from fig8_interpolation import HEADINGS, LAMBDAS, pairs

from minddpm.sample import interpolate


def main(argv=None):
    """Draw a row for each t: source, reconstruction, λ = 0.1, …, 0.9, reconstruction, source."""
    args = common.parser(__doc__, "fig9_coarse_to_fine.png", n=1, smoke_n=1, images="pairs of images").parse_args(argv)
    with common.trained(args) as run:
        s = run.model.schedule
        times = [s.T * eighth // 8 for eighth in range(9)]                          # the paper's 0, 125, …, 1000
        x0, x0_prime = pairs(run, args.seed)
        with run.network("interpolation", sum(times)) as output:
            rows = [[x0, *interpolate(s, output, x0, x0_prime, LAMBDAS, t, args.seed, **run.model.how), x0_prime] for t in times]
    cells = np.stack([np.stack(row, axis=1) for row in rows], axis=1)              # (pairs, times, columns, H, W, C)
    common.sheet(args.out, cells.reshape(-1, *cells.shape[2:]), HEADINGS,
                 "Fig. 9. Fig. 8 at other t. t = 0 mixes the images pixel by pixel; at small t the model adds the details, at "
                 f"large t everything, and at t = {s.T} the source has no influence.", [f"t = {t}" for t in times] * len(x0))


if __name__ == "__main__":
    common.start(main)
