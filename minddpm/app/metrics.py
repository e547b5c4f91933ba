"""Standard errors, and how far samples are from the data: Fréchet distance and nearest neighbours (Sec. 4, App. B, D).

The paper measures FID, the Fréchet distance of Inception features.  Other features give other numbers, to be compared only with
those of real images and of noise; none of them is called FID here.  All arrays are on the host.
"""

import math

import numpy as np

COMPONENTS = 50             # have most of the variance of small images, and 500 of these are enough to fit a Gaussian to them


def standard_error(values):
    """The standard error of the mean of (B,) independent values; nan for one value.

    Of a bound's values it covers both the noise of the estimate and the choice of the images.
    """
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def frechet(a, b):
    """The squared Fréchet distance of the Gaussians fitted to features a (N,F) and b (M,F); N, M at least 2.

        ‖m_a − m_b‖² + tr( C_a + C_b − 2 (C_a C_b)^½ )

    For two finite sets of the same distribution it is above 0, the more so the smaller they are: compare sets of the same size.
    """
    # tr (C_a C_b)^½ is the sum of the singular values of C_a^½ C_b^½, as C_a C_b and C_a^½ C_b C_a^½ have the same eigenvalues.
    root_a, root_b = _root(np.cov(a.T)), _root(np.cov(b.T))
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + (root_a**2).sum() + (root_b**2).sum() - 2 * np.linalg.svd(root_a @ root_b, compute_uv=False).sum())


def _root(covariance):
    """The symmetric square root; ‖root‖² is the covariance's trace."""
    w, V = np.linalg.eigh(np.atleast_2d(covariance))
    return V * np.sqrt(np.maximum(w, 0)) @ V.T


def pca(images, components=COMPONENTS):
    """A function from images (M, ...) to their features (M, F): the principal components of images (N, ...).

    F is `components`, or the images' size if that is less.  The components are orthonormal, not whitened.
    """
    mean = images.reshape(len(images), -1).mean(0, dtype=np.float64)
    _, V = np.linalg.eigh(np.atleast_2d(np.cov(images.reshape(len(images), -1).T)))
    V = V[:, ::-1][:, :components]

    def features(x):
        return (x.reshape(len(x), -1) - mean) @ V

    return features


def nearest(x, images, chunk=256):
    """Fig. 12, 15.  For each of x (M, ...) the nearest of images (N, ...): (its index (M,), Euclidean distance (M,))."""
    x, images = x.reshape(len(x), -1).astype(np.float64), images.reshape(len(images), -1).astype(np.float64)
    square = (images**2).sum(1)
    index = np.concatenate([np.argmin(square - 2 * x[k:k + chunk] @ images.T, axis=1) for k in range(0, len(x), chunk)])
    return index, np.sqrt(((x - images[index]) ** 2).sum(1))
