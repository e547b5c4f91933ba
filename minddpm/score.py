"""ε_θ as a score: denoising score matching and Langevin dynamics (Sec. 3.2, App. C).

The score of a density is the gradient of its logarithm with respect to x.  A network that predicts the noise in x_t gives the
score of q(x_t), so the diffusion model can also be sampled as a score network is, after Song and Ermon (2019), arXiv
1907.05600.  The difference to Alg. 2 is App. C's: there step sizes are chosen by hand, and here they follow from β_t.
"""

import numpy as np

from minddpm.diffusion import check_t, per_image, x0_hat
from minddpm.sample import noise


def score(s, x_t, t, eps):
    """Sec. 3.2.  The score ∇ log q(x_t) (B, ...) of ε = ε_θ(x_t, t).

        s_θ(x_t, t) = −ε_θ(x_t, t) / √(1 − ᾱ_t)

    With the noise ε of x_t itself in the place of ε_θ it is the score of q(x_t | x_0), which ε_θ is trained to be on average.
    """
    return per_image(-1 / np.sqrt(1 - s.alpha_bar[check_t(s, t)]), eps) * eps


def score_matching(s, x_t, t, eps, eps_theta):
    """Sec. 3.2.  Denoising score matching: the squared distance of two scores, a mean over the D numbers of each image (B,).

        1/D ‖ s_θ(x_t, t) − ∇ log q(x_t | x_0) ‖²  =  1/(1 − ᾱ_t) · 1/D ‖ε − ε_θ(x_t, t)‖²

    L_simple and Eq. (12) are the same with other weights.  eps is the noise of x_t, eps_theta the network's output.
    """
    target = score(s, x_t, t, eps)
    return ((score(s, x_t, t, eps_theta) - target) ** 2).reshape(len(x_t), -1).mean(1)


def langevin(s, eps_theta, shape, rng, times, steps=100, step=0.1, like=None):
    """App. C.  Annealed Langevin dynamics: samples x_0 (B, ...) = shape, without Alg. 2's coefficients.

        x ~ N(0, I);   for t in times, `steps` times:   x ← x + a_t/2 s_θ(x, t) + √a_t z,   a_t = step · (1 − ᾱ_t)
        x_0 = x̂_0(x, t) of Eq. (15) at the last of the times

    The steps at t start from the result of the previous t; times falls, as from T to 1, and so does the noise.
    The step size proportional to the variance of the noise is Song and Ermon's (their Alg. 1), and so are 100 steps
    a noise level; theirs begins with x uniform, and ends without the estimate of x_0, which Alg. 2 also ends with.
    Larger steps move faster and widen the result: where q(x_t) = N(0, V), the dynamics come to rest at V / (1 − a_t / 4V).
    rng: a NumPy generator.  like: an array of the dtype and kind (NumPy's or CuPy's) to work in; float32 and NumPy's if None.
    """
    z = noise([rng] * shape[0], shape, like)
    x = next(z)
    for t in times:
        a_t = float(step * (1 - s.alpha_bar[check_t(s, t)]))
        for _ in range(steps):
            x = x + a_t / 2 * score(s, x, t, eps_theta(x, t)) + a_t**0.5 * next(z)
    return x0_hat(s, x, t, eps_theta(x, t))
