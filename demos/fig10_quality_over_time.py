"""Fig. 10, Sec. 4.3.  Sample quality over reverse time: how far the estimates x̂_0 of Eq. (15) are from the training images.

    python demos/fig10_quality_over_time.py [--run runs/demo] [--out fig10_quality_over_time.png] [-n 200]

The paper plots Inception Score and FID.  This is the Fréchet distance in the pixels' principal components, which needs no
other network, and which only the distances of held-out images and of noise give a meaning.
"""

import common
import numpy as np

from minddpm import data
from minddpm import device as backend
from minddpm.app.metrics import frechet, pca
from minddpm.errors import UserError
from minddpm.sample import progressive


def main(argv=None):
    """The curve as a picture, and its numbers in the terminal."""
    args = common.parser(__doc__, "fig10_quality_over_time.png", n=200, smoke_n=16, images="samples").parse_args(argv)
    axes, save = common.figure()
    with common.trained(args) as model:
        if model.n < 2:
            raise UserError(f"-n is {model.n}; expected at least 2")
        s, levels = model.model.schedule, model.dataset.levels
        train = data.scale(model.dataset.train, levels)
        features = pca(train)
        reference = features(train)
        noise = np.random.default_rng([args.seed, 1]).standard_normal(model.shape)

        def distance(x):
            return frechet(features(data.scale(data.unscale(backend.to_host(x), levels), levels)), reference)

        lines = {"noise": distance(noise), "held-out images": distance(model.held_out(model.n, args.seed))}
        shown = common.times(s.T, 20)
        with model.network("reverse process", s.T) as eps_theta:
            steps = progressive(s, eps_theta, model.shape, args.seed, like=model.like, **model.how)
            curve = [distance(x0_hat) for t, x0_hat in steps if t in shown]
    print("     t   Fréchet distance of x̂_0 to the training images")
    print("\n".join(f"{t:6}   {d:.3f}" for t, d in zip(shown, curve, strict=True)))
    print("\n".join(f"{d:12.3f} for as many {name}" for name, d in lines.items()))
    plot(axes, s.T, shown, curve, lines, f"Fig. 10. {model.n} images, {reference.shape[1]} principal components of the pixels")
    save(args.out)


def plot(axes, T, times, curve, lines, title):
    """The curve over T − t, and a dashed line for each of the others."""
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
