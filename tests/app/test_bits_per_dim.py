"""The estimate of the bound from a few of its terms, its standard error, and the warning of a schedule that keeps x_0 in x_T."""

import math

import numpy as np
import oracles
import pytest
from test_likelihood import LINEAR, images, network, short_schedule

from minddpm.app.bits_per_dim import prior_warning, standard_error, vlb_estimate
from minddpm.diffusion import Schedule
from minddpm.likelihood import prior_term, vlb


def test_eq05_estimate_is_unbiased_and_its_standard_error_is_right():
    s, x0, eps_theta = short_schedule(40), images(np.random.default_rng(2), (1, 2, 2, 1)), network()
    many = np.repeat(x0, 20_000, 0)
    full = vlb(s, eps_theta, many, np.random.default_rng(1))
    quick = vlb_estimate(s, eps_theta, many, np.random.default_rng(2), terms=6)
    for name in "total", "rate", "distortion", "L_T":
        a, b = getattr(full, name), getattr(quick, name)
        assert abs(a.mean() - b.mean()) <= 4 * math.hypot(standard_error(a), standard_error(b)) + 1e-12, name
    groups = quick.total.reshape(200, 100)                                  # 200 experiments of 100 images
    stated = np.array([standard_error(group) for group in groups])
    assert groups.mean(1).std() == pytest.approx(stated.mean(), rel=0.2)


def test_eq05_estimate_counts_each_term_once():
    """ε* of a point mass makes every term a known number, so that only the draw of t is left to chance."""
    x0 = np.full((2000, 1), 0.2)
    seen = []
    quick = vlb_estimate(LINEAR, oracles.point(LINEAR, x0), x0, np.random.default_rng(0), terms=30, on_step=seen.append)
    assert quick.total.mean() == pytest.approx(0.48642 + 1.7128, abs=4 * standard_error(quick.total))
    assert len(seen) == 30 and standard_error(quick.total) < 1e-3
    for T in 1, 2, 3, 7:                                                    # as many terms as there are: the bound itself
        s = short_schedule(T)
        model = oracles.point(s, x0)
        np.testing.assert_allclose(vlb_estimate(s, model, x0, np.random.default_rng(1), terms=50).total,
                                   vlb(s, model, x0, np.random.default_rng(2)).total)


def test_eq05_estimate_refuses_fewer_than_two_terms():
    with pytest.raises(ValueError, match="terms is 1; expected at least 2"):
        vlb_estimate(LINEAR, lambda x_t, t: x_t, np.zeros((2, 3)), np.random.default_rng(0), terms=1)


def test_standard_error_of_two_values():
    assert standard_error(np.array([0.0, 2.0])) == pytest.approx(1)             # √(Σ (x − 1)² / (2 − 1)) / √2
    assert math.isnan(standard_error(np.ones(1)))


def test_sec4_warning_has_the_number():
    for good in LINEAR, Schedule.quadratic(), Schedule.constant():          # App. B's three
        assert prior_warning(good) is None
    short = Schedule.linear(T=100)
    text = prior_warning(short)
    largest = prior_term(short, np.ones((1, 3)))[0]
    assert f"ᾱ_T = {short.alpha_bar[100]:.2g} at T = 100" in text and f"{largest:.2g} bits/dim" in text
