"""App. A: the bound in its three forms, Eq. (3), (5) and (16), as one number; and Sec. 3.2 and 4.3 on its terms."""

import itertools
import math

import literal
import numpy as np
import oracles
import pytest

from minddpm.app.metrics import standard_error
from minddpm.appendix_a import marginal_bound, path_bound
from minddpm.diffusion import Schedule, mu_theta, q_posterior, q_sample
from minddpm.gaussian import kl, log_density
from minddpm.likelihood import vlb

# Exactly, on Gaussian data ------------------------------------------------------------------------------------------------
#
# x_0 ~ N(m, v) in one dimension and a μ_θ that is linear in x_t: every expectation below is that of a quadratic.


def linear_model(s, m, v, skew=0.0):
    """μ_θ(x_t, t) = a[t] x_t + b[t]: Eq. (11) at ε*, and for skew > 0 a worse model than that."""
    eps_theta, a, b = oracles.gaussian(s, m, v), [0.0], [0.0]
    for t in range(1, s.T + 1):
        at0, at1 = (float(mu_theta(s, np.array([[x]]), t, eps_theta(np.array([[x]]), t))[0, 0]) for x in (0.0, 1.0))
        a.append((at1 - at0) * (1 + skew))
        b.append(at0 + skew * math.sin(t))
    return a, b


def expected_log_density(mean_gap, var_gap, var):
    """E log N(y; μ, var) where y − μ has mean mean_gap and variance var_gap."""
    return -0.5 * (math.log(2 * math.pi * var) + (mean_gap**2 + var_gap) / var)


def eq03_exact(s, m, v, a, b, sigma2):
    """Eq. (3): the expectation of each log-density under the joint law of (x_{t−1}, x_t) in q."""
    def q(t):
        return math.sqrt(s.alpha_bar[t]) * m, s.alpha_bar[t] * v + 1 - s.alpha_bar[t]

    L = -expected_log_density(*q(s.T), 1.0)
    for t in range(1, s.T + 1):
        (mean_prev, var_prev), root = q(t - 1), math.sqrt(1 - s.beta[t])
        gap_mean = mean_prev - a[t] * root * mean_prev - b[t]                # x_{t−1} − a x_t − b, x_t = root x_{t−1} + √β z
        gap_var = (1 - a[t] * root) ** 2 * var_prev + a[t] ** 2 * s.beta[t]
        L -= expected_log_density(gap_mean, gap_var, sigma2[t]) - expected_log_density(0.0, s.beta[t], s.beta[t])
    return L


def eq05_exact(s, m, v, a, b, sigma2):
    """Eq. (5): E ‖μ̃_t − μ_θ‖², a quadratic in x_0 and ε, by its values where one of them is not zero."""
    mean, var = math.sqrt(s.alpha_bar[s.T]), 1 - s.alpha_bar[s.T]
    L = 0.5 * (s.alpha_bar[s.T] * (m * m + v) + var - 1 - math.log(var))
    assert mean < 1

    def gap(t, x0, eps):
        x0, eps = np.array([[x0]]), np.array([[eps]])
        x_t = q_sample(s, x0, t, eps)
        target = q_posterior(s, x0, x_t, t)[0] if t > 1 else x0
        return float((target - a[t] * x_t - b[t])[0, 0])

    for t in range(s.T, 0, -1):
        slope_x0, slope_eps = gap(t, 1.0, 0.0) - gap(t, 0.0, 0.0), gap(t, 0.0, 1.0) - gap(t, 0.0, 0.0)
        gap_mean, gap_var = gap(t, m, 0.0), slope_x0**2 * v + slope_eps**2
        if t > 1:
            L += kl(0.0, s.beta_tilde[t], math.sqrt(gap_mean**2 + gap_var), sigma2[t])
        else:
            L -= expected_log_density(gap_mean, gap_var, sigma2[1])
    return float(L)


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
@pytest.mark.parametrize("skew", [0.0, 0.05])
@pytest.mark.parametrize(["m", "v"], [(0.0, 1.0), (0.3, 0.2), (-1.0, 2.5)])
def test_eq03_eq05_and_eq16_are_one_number_on_gaussian_data(m, v, skew, sigma2):
    s = Schedule.linear(7, 0.05, 0.5)
    a, b = linear_model(s, m, v, skew)
    table = s.sigma2(sigma2).tolist()
    three, five = (f(s, m, v, a, b, table) for f in (eq03_exact, eq05_exact))
    sixteen = literal.eq16_gaussian(s.beta.tolist(), lambda x, t: [a[t] * x[0] + b[t]], lambda x, t: [table[t]], m, v)
    assert three == pytest.approx(five, rel=1e-12)
    assert three == pytest.approx(sixteen, rel=1e-10)
    assert three > 0.5 * math.log(2 * math.pi * math.e * v) - 1e-12             # H(x_0): L is a bound


def test_eq16_gap_to_the_entropy_of_gaussian_data_closes_with_T():
    """Eq. (16) is H(x_0) plus what the model loses; with ε* that goes to 0 as 1/T.  Exact: no draws, no tolerance for them."""
    m, v, gaps = 0.1, 0.3, []
    for T in 30, 100, 300, 1000:
        s = Schedule.linear(T, 0.1 / T, 20 / T)
        a, b = linear_model(s, m, v)
        gaps.append(eq03_exact(s, m, v, a, b, s.beta.tolist()) - 0.5 * math.log(2 * math.pi * math.e * v))
    assert all(gap > 0 for gap in gaps), gaps
    rates = [T * gap for T, gap in zip((30, 100, 300, 1000), gaps, strict=True)]
    assert max(rates[1:]) < 1.15 * min(rates[1:]), rates                        # T · gap is constant: O(1/T)
    assert gaps[-1] < 0.01


def test_eq05_function_has_the_exact_expectation():
    """vlb itself, with bins so fine that Eq. (13) is a density times their width."""
    s, (m, v), levels = Schedule.linear(7, 0.05, 0.5), (0.05, 0.02), 10**5 + 1
    a, b = linear_model(s, m, v)
    x0 = m + v**0.5 * np.random.default_rng(0).standard_normal((40_000, 1))
    bits = vlb(s, oracles.gaussian(s, m, v), x0, np.random.default_rng(1), clip=False, levels=levels).total
    exact = eq05_exact(s, m, v, a, b, s.beta.tolist()) / math.log(2) - math.log2(2 / (levels - 1))
    assert bits.mean() == pytest.approx(exact, abs=4 * standard_error(bits))
    assert standard_error(bits) < 0.01


# By Monte Carlo with a confidence interval, where the data are not Gaussian ------------------------------------------------


@pytest.mark.parametrize(["sigma2", "clip", "good"], [("beta", True, True), ("beta_tilde", False, True), ("beta", True, False)])
def test_eq03_eq05_and_eq16_agree_on_a_finite_data_set(sigma2, clip, good):
    s = Schedule.linear(12, 0.01, 0.6)
    data = np.random.default_rng(0).choice(np.linspace(-1, 1, 17), (6, 3))
    eps_theta = oracles.finite(s, data) if good else lambda x_t, t: 0.9 * np.sin(x_t)
    rng, runs, forms = np.random.default_rng(7), 150, {}
    for name, bits in {
        "Eq. (3)": lambda: path_bound(s, eps_theta, data, rng, sigma2, clip, levels=17),
        "Eq. (5)": lambda: vlb(s, eps_theta, data, rng, sigma2, clip, levels=17).total,
        "Eq. (16)": lambda: marginal_bound(s, eps_theta, data, rng, sigma2, clip, levels=17),
    }.items():
        draws = np.array([bits().mean() for _ in range(runs)])
        forms[name] = draws.mean(), standard_error(draws)
    for (one, (mean1, error1)), (two, (mean2, error2)) in itertools.combinations(forms.items(), 2):
        assert abs(mean1 - mean2) < 4 * math.hypot(error1, error2), (one, two, forms)
    assert all(error < 0.04 * mean for mean, error in forms.values()), forms    # the intervals are narrow enough to tell
    assert forms["Eq. (16)"][0] > math.log2(6) / 3


def test_eq16_refuses_equal_images():
    with pytest.raises(ValueError, match="two equal images"):
        marginal_bound(Schedule.linear(3), lambda x_t, t: x_t, np.zeros((2, 3)), np.random.default_rng(0))


# Sec. 3.2: the two choices of σ_t² -----------------------------------------------------------------------------------------


def expected_L(s, t, sigma2, m, v):
    """E[L_{t−1}] of N(m, v) data and ε* for any σ_t², by Gauss-Hermite quadrature over x_0 and ε."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)                      # exact for the quadratic
    weights = weights / weights.sum()
    x0, eps = (g.reshape(-1, 1) for g in np.meshgrid(m + v**0.5 * nodes, nodes))
    x_t = q_sample(s, x0, t, eps)
    terms = kl(*q_posterior(s, x0, x_t, t), mu_theta(s, x_t, t, oracles.gaussian(s, m, v)(x_t, t)), sigma2)
    return float(np.outer(weights, weights).ravel() @ terms.ravel())


@pytest.mark.parametrize("t", [2, 3, 50, 500, 1000])
@pytest.mark.parametrize(["data", "best"], [("standard normal", "beta"), ("one point", "beta_tilde")])
def test_sec32_the_optimal_sigma2(t, data, best):
    s = Schedule.linear()
    m, v = (0.0, 1.0) if data == "standard normal" else (0.37, 0.0)
    optimum = s.sigma2(best)[t]
    there = expected_L(s, t, optimum, m, v)
    for factor in 0.9, 0.99, 0.999, 1.001, 1.01, 1.1:
        assert expected_L(s, t, factor * optimum, m, v) > there, factor
    assert there == pytest.approx(0 if data == "one point" else 0.5 * math.log(s.beta[t] / s.beta_tilde[t]), abs=1e-12)


@pytest.mark.parametrize("atoms", [[-1.0, 1.0], [-1.5, 0.0, 1.5], [-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], [-3.0, 1 / 3] ])
def test_sec32_the_entropy_of_the_reverse_process_lies_between_the_two(atoms):
    """"Upper and lower bounds on reverse process entropy for data with coordinatewise unit variance."

    H(x_{t−1} | x_t) = H(x_{t−1}) + H(x_t | x_{t−1}) − H(x_t), and q(x_t) is a mixture of Gaussians on a line.
    """
    atoms = np.array(atoms)
    weights = np.array([0.1, 0.9]) if len(atoms) == 2 and atoms.sum() else np.full(len(atoms), 1 / len(atoms))
    atoms = (atoms - weights @ atoms) / math.sqrt(weights @ (atoms - weights @ atoms) ** 2)
    s, x = Schedule.linear(20, 0.02, 0.4), np.linspace(-14, 14, 56_001)

    def entropy(t):
        log_q = np.logaddexp.reduce(np.log(weights)[:, None]
                                    + log_density(x, math.sqrt(s.alpha_bar[t]) * atoms[:, None], 1 - s.alpha_bar[t]))
        return -(np.exp(log_q) * log_q).sum() * (x[1] - x[0])

    for t in range(2, s.T + 1):
        lower, upper = (0.5 * math.log(2 * math.pi * math.e * var) for var in (s.beta_tilde[t], s.beta[t]))
        found = entropy(t - 1) + upper - entropy(t)
        assert lower - 1e-9 <= found <= upper + 1e-9, t
        assert t > 5 or found < upper - 1e-4                                    # these data touch neither bound where it matters


# Sec. 4.3: an autoregressive model is a diffusion with masking -------------------------------------------------------------


def masking_diffusion(p_data, T):
    """q(x_{0:T}): step t blanks coordinate t, for ever.  {(x_0, …, x_T): probability}, a blank is None."""
    return {tuple((None,) * t + x0[t:] for t in range(T + 1)): probability for x0, probability in p_data.items()}


def autoregressive_process(conditional, values, T):
    """p_θ(x_{0:T}): from the blank image, coordinates T, T−1, …, 1, each by conditional(t, what follows it)[value]."""
    p = {}
    for x0 in itertools.product(values, repeat=T):
        probability = math.prod(conditional(t, x0[t:])[x0[t - 1]] for t in range(1, T + 1))
        p[tuple((None,) * t + x0[t:] for t in range(T + 1))] = probability
    return p


def test_sec43_an_autoregressive_model_is_a_diffusion_with_masking():
    T, values, rng = 4, (0, 1, 2), np.random.default_rng(43)
    weights = rng.random((3,) * T) ** 3
    p_data = {x0: float(weights[x0] / weights.sum()) for x0 in itertools.product(values, repeat=T)}

    def true_conditional(t, rest):
        """The data's own q(x^t | x^{t+1}, …, x^T)."""
        total = {v: sum(p for x0, p in p_data.items() if x0[t - 1:] == (v, *rest)) for v in values}
        return {v: p / sum(total.values()) for v, p in total.items()}

    def untrained(t, rest):
        logits = np.sin(np.arange(3) * (t + 1) + sum(rest))
        return dict(zip(values, (np.exp(logits) / np.exp(logits).sum()).tolist(), strict=True))

    q = masking_diffusion(p_data, T)
    entropy = -sum(p * math.log(p) for p in p_data.values())
    for conditional in true_conditional, untrained:
        p = autoregressive_process(conditional, values, T)
        assert sum(p.values()) == pytest.approx(1)
        L = literal.eq16_finite(q, p)
        assert L == pytest.approx(literal.eq03_finite(q, p), rel=1e-12)
        # the autoregressive model's loss: each coordinate's cross-entropy given those after it
        loss = -sum(probability * math.log(conditional(t, x0[t:])[x0[t - 1]])
                    for x0, probability in p_data.items() for t in range(1, T + 1))
        assert L == pytest.approx(loss, rel=1e-12)
        assert L >= entropy - 1e-12
        # the prior costs nothing: KL(q(x_T) ‖ p(x_T)) = 0, as both are the blank image
        assert {x[T] for x in q} == {x[T] for x in p} == {(None,) * T}
    assert literal.eq16_finite(q, autoregressive_process(true_conditional, values, T)) == pytest.approx(entropy, rel=1e-12)
