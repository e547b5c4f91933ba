"""The forward process q, its posterior, and both in terms of the noise ε (Sec. 2, 3.1, 3.2).

t is the paper's t, 1..T, an int or an int array (B,), one for each image; t = 0 is the data itself where an equation
allows it.  x arrays are (B, ...) of any float dtype, NumPy's or CuPy's; results are of x's kind and dtype.  Coefficients are
computed from the float64 tables and rounded once.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Schedule:
    """Sec. 2.  The variances β_1..β_T of the forward process, and the tables that Eq. (4) and (7) make of them.

        α_t = 1 − β_t        ᾱ_t = ∏_{s≤t} α_s        β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t)

    Every table is float64, read-only, of length T+1 and indexed by the paper's t: beta[0] = 0 and alpha_bar[0] = 1, so that
    Eq. (7) needs no special case and beta_tilde[1] = 0 falls out.

    >>> s = Schedule.linear()
    >>> print(s.T, s.beta[1], s.beta[1000], f"{s.alpha_bar[1000]:.6g}")
    1000 0.0001 0.02 4.03583e-05

    Raises ValueError unless beta is (T+1,) with beta[0] = 0 and 0 < beta[t] < 1 after it.
    """

    beta: np.ndarray
    alpha: np.ndarray = field(init=False, repr=False)
    alpha_bar: np.ndarray = field(init=False, repr=False)
    beta_tilde: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        beta = np.array(self.beta, dtype=np.float64)
        if beta.ndim != 1 or len(beta) < 2 or beta[0] != 0:
            raise ValueError(f"beta has shape {beta.shape}; expected (T+1,) with beta[0] = 0 and T >= 1")
        if not np.all((beta[1:] > 0) & (beta[1:] < 1)):
            raise ValueError(f"beta runs from {beta[1:].min():g} to {beta[1:].max():g}; expected 0 < beta < 1 for t = 1..T")
        alpha = 1 - beta
        alpha_bar = np.cumprod(alpha)
        beta_tilde = np.zeros_like(beta)
        beta_tilde[1:] = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
        for name, table in dict(beta=beta, alpha=alpha, alpha_bar=alpha_bar, beta_tilde=beta_tilde).items():
            table.setflags(write=False)
            object.__setattr__(self, name, table)

    @property
    def T(self):
        """The number of diffusion steps."""
        return len(self.beta) - 1

    @classmethod
    def linear(cls, T=1000, beta_1=1e-4, beta_T=0.02):
        """Sec. 4.  β_t from β_1 to β_T in equal steps: the paper's choice."""
        return cls(np.concatenate([[0], np.linspace(beta_1, beta_T, T)]))

    @classmethod
    def quadratic(cls, T=1000, beta_1=1e-4, beta_T=0.02):
        """App. B.  √β_t from √β_1 to √β_T in equal steps."""
        return cls(np.concatenate([[0], np.linspace(beta_1**0.5, beta_T**0.5, T) ** 2]))

    @classmethod
    def constant(cls, T=1000, beta=0.02):
        """App. B.  β_t = β for every t."""
        return cls(np.concatenate([[0], np.full(T, beta)]))

    def sigma2(self, choice="beta"):
        """Sec. 3.2.  The table σ_t² of the reverse process, float64 (T+1,): "beta" is σ_t² = β_t, "beta_tilde" is σ_t² = β̃_t.

        σ_1² is the decoder's variance in Eq. (13), where β̃_1 = 0 would be no density: "beta_tilde" has σ_1² = β̃_2 there (β_1 if
        T = 1).  The released code has β̃_2 there for both choices (diffusion_utils_2.py:139-146), which costs fewer bits where the
        mean is exact, 1.31 bits/dim against 1.71, and more where it is not.  Sampling does not use σ_1.

        Raises ValueError for any other choice.
        """
        if choice == "beta":
            return self.beta
        if choice != "beta_tilde":
            raise ValueError(f"sigma2 is {choice!r}; expected 'beta' or 'beta_tilde'")
        sigma2 = self.beta_tilde.copy()
        sigma2[1] = self.beta_tilde[2] if self.T > 1 else self.beta[1]
        return sigma2


def check_t(s, t, lowest=1):
    """The paper's t as an array, () or (B,); ValueError unless all are whole numbers in lowest..T."""
    t = np.asarray(t)
    if t.dtype.kind not in "iu":
        raise ValueError(f"t has dtype {t.dtype}; expected integers in {lowest}..{s.T}")
    if t.size and not (lowest <= t.min() and t.max() <= s.T):
        raise ValueError(f"t runs from {t.min()} to {t.max()}; expected {lowest}..{s.T}")
    return t


def per_image(coefficient, x):
    """A float64 coefficient, () or (B,), as a number or an array (B, 1, ...) that multiplies x (B, ...) and keeps its dtype."""
    if np.ndim(coefficient) == 0:
        return float(coefficient)
    column = coefficient.reshape((-1,) + (1,) * (x.ndim - 1))
    return np.asarray(column, dtype=x.dtype, like=x)


def q_step(s, x_prev, t, eps):
    """Eq. (2).  One step of the forward process, from x_{t−1} (B, ...) to x_t, with ε ~ N(0, I) of the same shape.

        x_t = √(1 − β_t) x_{t−1} + √β_t ε
    """
    beta = s.beta[check_t(s, t)]
    return per_image(np.sqrt(1 - beta), x_prev) * x_prev + per_image(np.sqrt(beta), eps) * eps


def q_marginal(s, x0, t):
    """Eq. (4).  Mean (B, ...) and variance (one number, or broadcasting like x0) of q(x_t | x_0), t = 0..T.

        q(x_t | x_0) = N(x_t; √ᾱ_t x_0, (1 − ᾱ_t) I)
    """
    alpha_bar = s.alpha_bar[check_t(s, t, lowest=0)]
    return per_image(np.sqrt(alpha_bar), x0) * x0, per_image(1 - alpha_bar, x0)


def q_sample(s, x0, t, eps):
    """Eq. (4).  A draw x_t (B, ...) from q(x_t | x_0) for ε ~ N(0, I), t = 0..T.

        x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε
    """
    alpha_bar = s.alpha_bar[check_t(s, t, lowest=0)]
    return per_image(np.sqrt(alpha_bar), x0) * x0 + per_image(np.sqrt(1 - alpha_bar), eps) * eps


def q_posterior(s, x0, x_t, t):
    """Eq. (6), (7).  Mean μ̃_t (B, ...) and variance β̃_t (one number, or broadcasting like x_t) of q(x_{t−1} | x_t, x_0).

        μ̃_t(x_t, x_0) = √ᾱ_{t−1} β_t / (1 − ᾱ_t) x_0 + √α_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t) x_t
        β̃_t           = (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t

    >>> s = Schedule.linear()
    >>> mean, var = q_posterior(s, np.ones((1, 1)), np.zeros((1, 1)), 500)
    >>> print(f"{mean.item():.8f}  {var:.8f}")
    0.00307007  0.01003136
    """
    coef_x0, coef_xt = posterior_coefficients(s, check_t(s, t))
    mu_tilde = per_image(coef_x0, x0) * x0 + per_image(coef_xt, x_t) * x_t
    return mu_tilde, per_image(s.beta_tilde[t], x_t)


def posterior_coefficients(s, t):
    """The factors of x_0 and of x_t in Eq. (7)'s μ̃_t: float64, shaped as t."""
    beta, alpha, alpha_bar, alpha_bar_prev = s.beta[t], s.alpha[t], s.alpha_bar[t], s.alpha_bar[t - 1]
    coef_x0 = np.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
    coef_xt = np.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return coef_x0, coef_xt


def x0_hat(s, x_t, t, eps):
    """Eq. (15).  The x_0 (B, ...) that x_t came from if its noise was ε: Eq. (4) solved for x_0.

        x̂_0 = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t
    """
    alpha_bar = s.alpha_bar[check_t(s, t)]
    return (x_t - per_image(np.sqrt(1 - alpha_bar), eps) * eps) / per_image(np.sqrt(alpha_bar), x_t)


def mu_theta(s, x_t, t, eps):
    """Eq. (11).  The reverse process's mean (B, ...) for ε = ε_θ(x_t, t): Eq. (7) at x_0 = Eq. (15), as in Eq. (9) and (10).

        μ_θ(x_t, t) = 1/√α_t (x_t − β_t / √(1 − ᾱ_t) ε)
    """
    t = check_t(s, t)
    beta, alpha, alpha_bar = s.beta[t], s.alpha[t], s.alpha_bar[t]
    return (x_t - per_image(beta / np.sqrt(1 - alpha_bar), eps) * eps) / per_image(np.sqrt(alpha), x_t)
