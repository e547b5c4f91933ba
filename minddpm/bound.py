"""The bound L as a training loss (Sec. 3): L_{t−1} at a random t, and its gradient with respect to p_θ's mean and log-variance.

x arrays are (B, ..., C) float64; t is the paper's t, (B,).
"""

import math

import numpy as np

from minddpm.diffusion import per_image, q_posterior
from minddpm.gaussian import kl, log_density, log_normal_interval, standardized_bin


def bound_term(s, x0, x_t, t, mean, log_var, levels=256):
    """Eq. (5), (8), (13).  L_{t−1} for t > 1 and L_0 for t = 1, in bits/dim -> loss (B,).

        L_{t−1} = KL( q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t) )            L_0 = −log p_θ(x_0 | x_1)

    p_θ(x_{t−1} | x_t) = N(mean, e^log_var), where log_var broadcasts to mean; levels: how many values a datum has.
    For t uniform in 1..T the expected loss is (L − L_T) / T.
    Back: dloss -> dmean, dlog_var, both like mean.
    """
    log_var = np.broadcast_to(log_var, mean.shape)
    mu_tilde, _ = q_posterior(s, x0, x_t, t)
    beta_tilde = per_image(s.sigma2("beta_tilde")[t], mean)              # not 0 at t = 1, where L_0 takes the KL's place
    first = np.asarray(np.flatnonzero(t == 1), like=mean)
    nats, kl_back = kl_to(mu_tilde, beta_tilde, mean, log_var)
    nats[first], nll_back = decoder_nll(x0[first], mean[first], log_var[first], levels)
    bits_a_dim = 1 / (math.log(2) * mean[0].size)
    loss = nats.reshape(len(nats), -1).sum(axis=1) * bits_a_dim

    def bound_term_back(dloss):
        dnats = np.broadcast_to((dloss * bits_a_dim).reshape((-1,) + (1,) * (mean.ndim - 1)), mean.shape)
        dmean, dlog_var = kl_back(dnats)
        dmean[first], dlog_var[first] = nll_back(dnats[first])
        return dmean, dlog_var

    return loss, bound_term_back


def kl_to(mu_tilde, beta_tilde, mean, log_var):
    """Eq. (5), (8).  KL( N(μ̃, β̃) ‖ N(mean, σ²) ) with σ² = e^log_var, elementwise, nats.

        ½ [ log σ² − log β̃ + (β̃ + (mean − μ̃)²) / σ² − 1 ]
    Back: dkl -> dmean = dkl (mean − μ̃) / σ²,    dlog_var = dkl ½ [ 1 − (β̃ + (mean − μ̃)²) / σ² ].   Keeps: mean − μ̃ and σ².
    """
    difference, var = mean - mu_tilde, np.exp(log_var)

    def kl_to_back(dkl):
        dmean    = dkl * difference / var
        dlog_var = dkl * (1 - (beta_tilde + difference**2) / var) / 2
        return dmean, dlog_var

    return kl(mu_tilde, beta_tilde, mean, var), kl_to_back


def decoder_nll(x0, mean, log_var, levels=256):
    """Eq. (13).  −log p_θ(x_0 | x_1) for N(mean, σ²) with σ² = e^log_var and data of so many levels, elementwise, nats.

        −log P,    P = Φ(z₊) − Φ(z₋),    z± = (δ±(x_0) − mean) / σ
    Back: dnll -> dmean, dlog_var.   Keeps: z±, σ and log P.

    With φ = Φ′, ∂z/∂mean = −1/σ and, as σ = e^(log_var/2), ∂z/∂log_var = −z/2:

        ∂(−log P)/∂mean    = ( φ(z₊)    − φ(z₋)    ) / P / σ
        ∂(−log P)/∂log_var = ( φ(z₊) z₊ − φ(z₋) z₋ ) / P / 2

    In the tails φ and P are too small for a float64, but not r± = φ(z±) / P = exp(log φ(z±) − log P), which has relative
    error z² 1e-16.  At the ends of the range z± is infinite: there φ(z) and φ(z) z are 0.
    """
    sigma = np.exp(log_var / 2)
    minus, plus = standardized_bin(x0, mean, sigma, levels)
    log_P = log_normal_interval(minus, plus)

    def decoder_nll_back(dnll):
        r_plus,  z_plus  = np.exp(log_density(plus,  0, 1) - log_P), np.where(np.isinf(plus),  0, plus)
        r_minus, z_minus = np.exp(log_density(minus, 0, 1) - log_P), np.where(np.isinf(minus), 0, minus)
        dmean    = dnll * (r_plus          - r_minus          ) / sigma
        dlog_var = dnll * (r_plus * z_plus - r_minus * z_minus) / 2
        return dmean, dlog_var

    return -log_P, decoder_nll_back
