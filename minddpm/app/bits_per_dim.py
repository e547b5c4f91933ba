"""Bits/dim of data sets: an estimate of the bound from a few of its terms, standard errors, and a warning (Table 1, Sec. 4)."""

import math
from typing import NamedTuple

import numpy as np

from minddpm.fast.device import to_host
from minddpm.likelihood import normal, prior_term, reverse_term

# The L_T in bits/dim from which prior_warning warns.  The paper has about 1e-5 (Sec. 4); its quadratic schedule, which the
# authors also counted as L_T ≈ 0 (App. B), has at most 5.3e-4.
PRIOR_LIMIT = 1e-3


class Estimate(NamedTuple):
    """Unbiased estimates for each image, bits/dim, (B,) each: the bound, its part L_0 and (no estimate) its part L_T."""

    total: np.ndarray
    distortion: np.ndarray
    L_T: np.ndarray

    @property
    def rate(self):
        """Sec. 4.3.  L_1 + … + L_T (B,)."""
        return self.total - self.distortion


def vlb_estimate(s, eps_theta, x0, rng, terms=50, on_step=lambda t: None, **how):
    """Eq. (5).  The bound from `terms` of its T reverse terms (all, if T is less), for a quick look -> Estimate.

    L_0 is always one of them.  t = 2, …, T are cut into terms − 1 ranges whose ends grow geometrically, as the terms are large
    and change fast where t is small; each image draws a t of its own from each range, and its term counts for the whole range.
    Images are independent of each other given the data: see standard_error.  **how: as for vlb.  ValueError: terms < 2.
    """
    if terms < 2:
        raise ValueError(f"terms is {terms}; expected at least 2")
    terms = min(terms, s.T)
    edges = np.maximum(np.geomspace(2, s.T + 1, terms).round().astype(int), 2 + np.arange(terms))      # no range is empty
    L_T, (L_0, _) = prior_term(s, x0), reverse_term(s, eps_theta, x0, 1, normal(rng, x0), **how)
    on_step(1)
    total = L_0 + L_T
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        t = rng.integers(first, end, len(x0))
        total = total + (end - first) * reverse_term(s, eps_theta, x0, t, normal(rng, x0), **how)[0]
        on_step(int(end) - 1)
    return Estimate(to_host(total), to_host(L_0), to_host(L_T))


def standard_error(values):
    """The standard error of the mean of (B,) independent values; nan for one value.

    Of a bound's values it covers both the noise of the estimate and the choice of the images.
    """
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def prior_warning(s):
    """Sec. 4.  A warning with the number if the schedule leaves much of x_0 in x_T, else None.

    For numbers in [−1, 1] L_T is at most −½ log₂(1 − ᾱ_T) bits/dim.  Sampling begins from N(0, I) as though it were 0.
    """
    worst = -0.5 * math.log2(1 - s.alpha_bar[s.T])
    if worst < PRIOR_LIMIT:
        return None
    return (f"the schedule leaves ᾱ_T = {s.alpha_bar[s.T]:.2g} at T = {s.T}: L_T is up to {worst:.2g} bits/dim (the "
            "paper's is 1e-5), so x_T still shows x_0, while sampling begins from pure noise; expected a larger T or β_T")
