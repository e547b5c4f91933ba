"""The standard error of a bound, and the warning of a schedule that leaves x_0 in x_T."""

import math

import numpy as np
import pytest
from test_likelihood import LINEAR

from minddpm.app.bits_per_dim import prior_warning, standard_error
from minddpm.diffusion import Schedule
from minddpm.likelihood import prior_term


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
