"""Fig. 12, 15, App. D.  Are the samples copies?  Each beside the training images that are nearest to it.

    python demos/fig12_nearest_neighbours.py [--run runs/demo] [--out fig12_nearest_neighbours.png] [-n 8]

The paper measures distances of pixels and of Inception's features.  Here the pixels' principal components, each scaled to
variance 1, replace these features: rare differences count as much as common ones, and no other network is needed.
"""

import common
import numpy as np

from minddpm import data
from minddpm.app.generate import generate
from minddpm.app.metrics import nearest, pca

NEIGHBOURS = 5


def main(argv=None):
    """A row for each sample: the sample, its nearest training images in the pixels, and those in the components."""
    args = common.parser(__doc__, "fig12_nearest_neighbours.png", n=8, images="samples").parse_args(argv)
    with common.trained(args) as run:
        levels = run.dataset.levels
        train = data.scale(run.dataset.train, levels)
        x0 = generate(run.model, run.n, args.seed, run.workers)
        x0 = data.scale(data.unscale(x0, levels), levels)
        unit = whitened(train)
        by_pixels, by_components = neighbours(x0, train), neighbours(unit(x0), unit(train))
        held_out = data.scale(run.dataset.held_out, levels)
        rmse, usual = (127.5 * nearest(x, train)[1] / x[0].size**0.5 for x in (x0, held_out))
    cells = np.concatenate([x0[:, None], train[by_pixels], train[by_components]], axis=1)
    columns = ["sample", *(f"pixels {k}" for k in range(1, NEIGHBOURS + 1)), *(f"PCA {k}" for k in range(1, NEIGHBOURS + 1))]
    common.sheet(args.out, cells, columns,
                 "Fig. 12, 15. Samples and their nearest training images: by the pixels, and by their principal components "
                 "scaled to variance 1. Left: the RMSE to the nearest by the pixels, on [0, 255]; for held-out images it is "
                 f"{np.median(usual):.0f} in the median, and below {np.quantile(usual, 0.01):.0f} for 1 %.",
                 [f"{r:.0f}" for r in rmse])


def neighbours(x, images, k=NEIGHBOURS):
    """For each of x (M, ...) the k nearest of images (N, ...), nearest first -> their indices (M, k)."""
    flat = images.reshape(len(images), -1)
    return np.stack([np.argsort(((flat - one.ravel()) ** 2).sum(1), kind="stable")[:k] for one in x])


def whitened(train):
    """The features of pca(train), each scaled to variance 1 over the training images."""
    features = pca(train)
    scale = features(train).std(0)

    def unit(x):
        return features(x) / np.where(scale > 1e-6, scale, 1)

    return unit


if __name__ == "__main__":
    common.start(main)
