"""Fig. 10, Sec. 4.3.  Sample quality over reverse time: how far the estimates x̂_0 of Eq. (15) are from the training images.

    python demos/fig10_quality_over_time.py [--run runs/demo] [--out fig10_quality_over_time.png] [-n 200]

The paper plots Inception Score and FID.  This is the Fréchet distance in the pixels' principal components, which needs no
other network; compare it with the distances of held-out images and of noise only.
"""

import common

from minddpm import data
from minddpm.app.metrics import frechet, pca
from minddpm.device import to_host
from minddpm.errors import UserError
from minddpm.random import rng
from minddpm.sample import progressive


def main(argv=None):
    """Draw the curve, and print its numbers."""
    args = common.parser(__doc__, "fig10_quality_over_time.png", n=200, smoke_n=16, images="samples").parse_args(argv)
    axes, save = common.figure()
    with common.trained(args) as run:
        if run.n < 2:
            raise UserError(f"-n is {run.n}; expected at least 2")
        s, levels = run.model.schedule, run.dataset.levels
        train = data.scale(run.dataset.train, levels)
        features = pca(train)
        reference = features(train)
        noise = rng("images of noise", args.seed).standard_normal(run.shape)

        def distance(x):
            return frechet(features(data.scale(data.unscale(to_host(x), levels), levels)), reference)

        lines = {"noise": distance(noise), "held-out images": distance(run.held_out(run.n, args.seed))}
        shown = common.times(s.T, 20)
        with run.network("reverse process", s.T) as output:
            steps = progressive(s, output, run.shape, args.seed, like=run.like, **run.model.how)
            curve = [distance(x0_hat) for t, x0_hat in steps if t in shown]
    print("     t   Fréchet distance of x̂_0 to the training images")
    print("\n".join(f"{t:6}   {d:.3f}" for t, d in zip(shown, curve, strict=True)))
    print("\n".join(f"{d:12.3f} for as many {name}" for name, d in lines.items()))
    plot(axes, s.T, shown, curve, lines, f"Fig. 10. {run.n} images, {reference.shape[1]} principal components of the pixels")
    save(args.out)


def plot(axes, T, times, curve, lines, title):
    """Plot the curve over T − t, and a dashed line for the distances in `lines`."""
    from matplotlib.ticker import LogLocator, MaxNLocator
    axes.plot([T - t for t in times], curve, "o-", label="x̂$_0$ at x$_t$")
    for (name, distance), colour in zip(lines.items(), ("grey", "black"), strict=True):
        axes.axhline(distance, color=colour, linestyle="--", label=name)
    axes.set(xlabel="reverse process steps T − t", ylabel="Fréchet distance to the training images", yscale="log", title=title)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend()
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    common.start(main)
