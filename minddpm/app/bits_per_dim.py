"""Bits/dim of data sets: standard errors, and a warning of a schedule that leaves x_0 in x_T (Table 1, Sec. 4)."""

import math

import numpy as np

# The L_T in bits/dim from which prior_warning warns.  The paper has about 1e-5 (Sec. 4); its quadratic schedule, which the
# authors also counted as L_T ≈ 0 (App. B), has at most 5.3e-4.
PRIOR_LIMIT = 1e-3


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
