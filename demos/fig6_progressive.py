"""Fig. 6, 14, Sec. 4.3.  Progressive generation: the estimate x̂_0 of Eq. (15) while x_t goes from noise to an image.

    python demos/fig6_progressive.py [--run runs/demo] [--out fig6_progressive.png] [-n 8]
"""

import common
import numpy as np

from minddpm.sample import progressive


def main(argv=None):
    """Draw a row for each image, a column for each of eleven times."""
    args = common.parser(__doc__, "fig6_progressive.png", n=8).parse_args(argv)
    with common.trained(args) as run:
        s = run.model.schedule
        shown = common.times(s.T, 10)
        with run.network("reverse process", s.T) as output:
            steps = progressive(s, output, run.shape, args.seed, like=run.like, **run.model.how)
            x0 = [x0_hat for t, x0_hat in steps if t in shown]
    common.sheet(args.out, np.stack(x0, axis=1), [f"t = {t}" for t in shown],
                 "Fig. 6. x0_hat, Eq. (15), at falling t: the model's estimate of the image. Place and size come first, the "
                 "details last. At t = 1 it is the sample.")


if __name__ == "__main__":
    common.start(main)
