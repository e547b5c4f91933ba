"""Fig. 7, Sec. 4.3.  Samples that share a latent x_t share the large features, and more of them the smaller t is.

    python demos/fig7_shared_latents.py [--run runs/demo] [--out fig7_shared_latents.png] [-n 3]
"""

import common
import numpy as np

from minddpm.sample import shared_latents


def main(argv=None):
    """Draw a row for each trajectory, a column for each t: squares of three samples x_0 ~ p_θ(x_0 | x_t), and x_t."""
    args = common.parser(__doc__, "fig7_shared_latents.png", n=3, smoke_n=2, images="trajectories").parse_args(argv)
    with common.trained(args) as run:
        s = run.model.schedule
        times = [s.T * quarter // 4 for quarter in (4, 3, 2, 1)]                    # the paper's 1000, 750, 500, 250
        calls = s.T - times[-1] + 1 + sum(times)                                    # the trajectory, then its continuations
        with run.network("reverse processes", calls) as output:
            latents = list(shared_latents(s, output, run.shape, args.seed, times, n=3, like=run.like, **run.model.how))
    cells = np.stack([square(*x0, x_t) for _, x_t, x0 in latents], axis=1)
    common.sheet(args.out, cells, [f"t = {t}" for t in times],
                 "Fig. 7. Three samples of p(x_0 | x_t) each, and bottom right the x_t that they share. The smaller t is, the "
                 "more they have in common.", cell=2 * common.CELL, gap=4)


def square(a, b, c, d):
    """Four (B,H,W,C) -> (B,2H+1,2W+1,C) with a grey cross between them."""
    cross = np.zeros_like(a[:, :1]), np.zeros_like(a[:, :, :1])
    upper, lower = np.concatenate([a, cross[1], b], axis=2), np.concatenate([c, cross[1], d], axis=2)
    return np.concatenate([upper, np.zeros_like(upper[:, :1]), lower], axis=1)


if __name__ == "__main__":
    common.start(main)
