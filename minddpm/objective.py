"""What the network is trained on: Eq. (14) and the other objectives of Table 2, each with its gradient by hand.

Every objective follows one rule:

    loss, back = objective(example, output)           loss (B,), one number an image
    doutput = back(dloss)                             dloss (B,), all 1/B for the gradient of the mean over the batch

`example` is what Alg. 1 draws, see Example.  `output` is the network's at x_t: its prediction (B, ..., C), of ε, μ̃ or x_0,
and where Σ is learned the log-variance of each number after it, (B, ..., 2C).  There are two kinds of loss, the mean squared
error of the prediction and the bound L in bits/dim; OBJECTIVES, at the end, has them all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minddpm.bound import bound_term
from minddpm.diffusion import Schedule, per_image, q_posterior
from minddpm.reverse import mean_from, split


class Example(NamedTuple):
    """Alg. 1, lines 2-4.  The arguments of a loss besides the network's output.

    x0, x_t, eps (B, ..., C) with x_t = q_sample(s, x0, t, eps); t (B,), the paper's t.
    sigma2: the choice of σ_t² where Σ = σ_t² I is fixed, see Schedule.sigma2.  levels: how many values a datum has (Sec. 3.3).
    """

    s: Schedule
    x0: Any
    x_t: Any
    t: np.ndarray
    eps: Any
    sigma2: str = "beta"
    levels: int = 256


def l_simple(eps, eps_theta):
    """Eq. (14).  The loss of each image: the mean over its D numbers of (ε − ε_θ)².  eps, eps_theta (B, ...) -> loss (B,).

        L_simple = 1/D ‖ε − ε_θ‖²
    Back: dloss (B,) -> dε_θ = dloss · 2/D (ε_θ − ε).  Keeps: ε_θ − ε.

    The paper writes the squared norm; the mean over D (the released code's meanflat, nn.py:112) makes an untrained
    network's loss 1, whatever the size of the images, and only rescales the gradient.
    """
    difference = eps_theta - eps
    B, D = len(difference), difference[0].size
    flat = difference.reshape(B, D)
    loss = np.mean(flat * flat, axis=1)

    def l_simple_back(dloss):
        # ∂/∂ε_θ  1/D Σ_i (ε_θ,i − ε_i)²  =  2/D (ε_θ − ε)
        return (dloss * (2 / D)).reshape((B,) + (1,) * (difference.ndim - 1)) * difference

    return loss, l_simple_back


def mse_loss(e, output, predicts, sigma2):
    """Eq. (14), Table 2, Sec. 3.2.  The same squared error of what the network predicts: "eps", the paper's own method; "mu",
    Table 2's ‖μ̃ − μ̃_θ‖²; or "x0", with "worse sample quality early in our experiments".  Back: dloss -> dprediction.
    """
    target = q_posterior(e.s, e.x0, e.x_t, e.t)[0] if predicts == "mu" else {"eps": e.eps, "x0": e.x0}[predicts]
    prediction, _ = split(output, e.x_t, sigma2)
    return l_simple(target, prediction)


def bound_loss(e, output, predicts, sigma2):
    """Eq. (5), (8), (11)-(13).  Table 2, "L": the term of the bound at t, bits/dim.  output (B, ..., C), or 2C with Σ.

    predicts: "eps", "mu" or "x0".  sigma2: σ_t², "learned" too.  With a fixed Σ and "eps" it is Eq. (12) for t > 1, but for its
    constant.  In float64; nothing is clipped, as in the released code (clip_denoised=False, diffusion_utils_2.py:288).
    Back: dloss -> doutput.  Keeps: as bound_term.
    """
    x0, x_t, output64 = (a.astype(np.float64, copy=False) for a in (e.x0, e.x_t, output))      # differences of nearly equal means
    prediction, log_var = split(output64, x_t, sigma2)
    fixed = log_var is None
    if fixed:
        log_var = per_image(np.log(e.s.sigma2(sigma2)[e.t]), x_t)
    mean, mean_back = mean_from(e.s, x_t, e.t, prediction, predicts)
    loss, bound_back = bound_term(e.s, x0, x_t, e.t, mean, log_var, e.levels)

    def bound_loss_back(dloss):
        dmean, dlog_var = bound_back(dloss)
        dprediction = mean_back(dmean)
        doutput = dprediction if fixed else np.concatenate([dprediction, dlog_var], axis=-1)
        return doutput.astype(output.dtype, copy=False)

    return loss, bound_loss_back


class Objective(NamedTuple):
    """A loss, the network's prediction for it (`predicts` of reverse.p_theta), and whether Σ is learned."""

    loss: Callable
    predicts: str
    learned_sigma: bool = False

    def __call__(self, example, output):
        """loss, back: see the module's first lines.  ValueError: the output's shape does not fit the example's."""
        return self.loss(example, output, self.predicts, "learned" if self.learned_sigma else example.sigma2)


OBJECTIVES = {
    "simple":        Objective(mse_loss,   "eps"),
    "eps-L":         Objective(bound_loss, "eps"),
    "eps-L-learned": Objective(bound_loss, "eps", learned_sigma=True),
    "mu-L":          Objective(bound_loss, "mu"),
    "mu-L-learned":  Objective(bound_loss, "mu", learned_sigma=True),
    "mu-mse":        Objective(mse_loss,   "mu"),
    "x0-L":          Objective(bound_loss, "x0"),
    "x0-mse":        Objective(mse_loss,   "x0"),
}
