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

from minddpm.bound import bound_term, mean_of_eps, mean_of_x0
from minddpm.diffusion import Schedule, per_image, q_posterior
from minddpm.reverse import split


class Example(NamedTuple):
    """Alg. 1, lines 2-4.  All that a loss is told besides the network's output.

    x0, x_t, eps (B, ..., C) with x_t = q_sample(s, x0, t, eps); t (B,), the paper's t, where the tables of s are.
    sigma2: the choice of σ_t² where Σ = σ_t² I is fixed, see Schedule.sigma2.  levels: how many values a datum has (Sec. 3.3).
    """

    s: Schedule
    x0: Any
    x_t: Any
    t: np.ndarray
    eps: Any
    sigma2: str = "beta"
    levels: int = 256

    @property
    def log_sigma2(self):
        """Sec. 3.2.  log σ_t² of the fixed Σ, one number an image, broadcasting like x_t."""
        return per_image(np.log(self.s.sigma2(self.sigma2)[self.t]), self.x_t)

    def bound_term(self, mean, log_var):
        """Eq. (5).  bound.bound_term of this example: the loss, and back: dloss -> dmean, dlog_var."""
        return bound_term(self.s, self.x0, self.x_t, self.t, mean, log_var, self.levels)


# The squared error of the prediction --------------------------------------------------------------------------------------


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


def mse_eps(e, eps_theta):
    """Eq. (14).  Table 2, "ε prediction: ‖ε̃ − ε_θ‖²": L_simple, the paper's own method.  Back: dloss -> dε_θ."""
    return l_simple(e.eps, eps_theta)


def mse_mu(e, mu_theta):
    """Table 2.  "μ̃ prediction: ‖μ̃ − μ̃_θ‖²": the same error of Eq. (7)'s μ̃_t(x_t, x_0).  Back: dloss -> dμ̃_θ."""
    mu_tilde, _ = q_posterior(e.s, e.x0, e.x_t, e.t)
    return l_simple(mu_tilde, mu_theta)


def mse_x0(e, x0_theta):
    """Sec. 3.2.  x_0 prediction, "worse sample quality early in our experiments": the same error of x_0.  Back: dloss -> dx̂_0."""
    return l_simple(e.x0, x0_theta)


# The bound L --------------------------------------------------------------------------------------------------------------
# Nothing is clipped in it (released code: clip_denoised=False, diffusion_utils_2.py:288).


def L_eps(e, eps_theta):
    """Eq. (12), (13).  Table 2, "ε prediction: L, fixed isotropic Σ".  Back: dloss -> dε_θ."""
    e, eps_theta, exact_back = in_float64(e, eps_theta)
    mean, mean_back = mean_of_eps(e.s, e.x_t, e.t, eps_theta)
    loss, bound_back = e.bound_term(mean, e.log_sigma2)

    def L_eps_back(dloss):
        dmean, _ = bound_back(dloss)
        deps = mean_back(dmean)
        return exact_back(deps)

    return loss, L_eps_back


def L_mu(e, mu_theta):
    """Eq. (8), (13).  Table 2, "μ̃ prediction: L, fixed isotropic Σ".  Back: dloss -> dμ̃_θ."""
    e, mu_theta, exact_back = in_float64(e, mu_theta)
    loss, bound_back = e.bound_term(mu_theta, e.log_sigma2)

    def L_mu_back(dloss):
        dmu, _ = bound_back(dloss)
        return exact_back(dmu)

    return loss, L_mu_back


def L_x0(e, x0_theta):
    """Eq. (8), (13).  Sec. 3.2's x_0 prediction with L, fixed isotropic Σ: the mean is Eq. (7) at x̂_0.  Back: dloss -> dx̂_0."""
    e, x0_theta, exact_back = in_float64(e, x0_theta)
    mean, mean_back = mean_of_x0(e.s, e.x_t, e.t, x0_theta)
    loss, bound_back = e.bound_term(mean, e.log_sigma2)

    def L_x0_back(dloss):
        dmean, _ = bound_back(dloss)
        dx0 = mean_back(dmean)
        return exact_back(dx0)

    return loss, L_x0_back


def L_eps_learned(e, output):
    """Eq. (5), (11), (13).  Table 2, "ε prediction: L, learned diagonal Σ".  output (B, ..., 2C).  Back: dloss -> doutput."""
    e, output, exact_back = in_float64(e, output)
    eps_theta, log_var = split(output, e.x_t, "learned")
    mean, mean_back = mean_of_eps(e.s, e.x_t, e.t, eps_theta)
    loss, bound_back = e.bound_term(mean, log_var)

    def L_eps_learned_back(dloss):
        dmean, dlog_var = bound_back(dloss)
        deps = mean_back(dmean)
        return exact_back(np.concatenate([deps, dlog_var], axis=-1))

    return loss, L_eps_learned_back


def L_mu_learned(e, output):
    """Eq. (5), (13).  Table 2, "μ̃ prediction: L, learned diagonal Σ".  output (B, ..., 2C).  Back: dloss -> doutput."""
    e, output, exact_back = in_float64(e, output)
    mu_theta, log_var = split(output, e.x_t, "learned")
    loss, bound_back = e.bound_term(mu_theta, log_var)

    def L_mu_learned_back(dloss):
        dmu, dlog_var = bound_back(dloss)
        return exact_back(np.concatenate([dmu, dlog_var], axis=-1))

    return loss, L_mu_learned_back


def in_float64(e, output):
    """The example and the output in float64, as L needs: it is made of differences of nearly equal means.

    Back: doutput -> the same in the output's dtype.
    """
    def in_float64_back(doutput):
        return doutput.astype(output.dtype, copy=False)

    x0, x_t, eps, output64 = (a.astype(np.float64, copy=False) for a in (e.x0, e.x_t, e.eps, output))
    return e._replace(x0=x0, x_t=x_t, eps=eps), output64, in_float64_back


# Table 2 ------------------------------------------------------------------------------------------------------------------


class Objective(NamedTuple):
    """A loss, and what the network's output then is: what it predicts, as reverse.p_theta has it, and whether Σ is learned."""

    loss: Callable
    predicts: str
    learned_sigma: bool = False

    def __call__(self, example, output):
        """loss, back: see the module's first lines.  ValueError: the output's shape does not fit the example's."""
        split(output, example.x_t, "learned" if self.learned_sigma else example.sigma2)
        return self.loss(example, output)


OBJECTIVES = {
    "simple":        Objective(mse_eps,       "eps"),
    "eps-L":         Objective(L_eps,         "eps"),
    "eps-L-learned": Objective(L_eps_learned, "eps", learned_sigma=True),
    "mu-L":          Objective(L_mu,          "mu"),
    "mu-L-learned":  Objective(L_mu_learned,  "mu", learned_sigma=True),
    "mu-mse":        Objective(mse_mu,        "mu"),
    "x0-L":          Objective(L_x0,          "x0"),
    "x0-mse":        Objective(mse_x0,        "x0"),
}
