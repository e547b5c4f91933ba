"""diffusion.py: the forward process, its posterior, and both in terms of ε, against literal.py and closed forms."""

import dataclasses
import math

import literal
import numpy as np
import pytest

from minddpm.diffusion import Schedule, mu_theta, q_marginal, q_posterior, q_sample, q_step, x0_hat
from minddpm.gaussian import kl, log_density

S = Schedule.linear()                   # the paper's
SHORT = Schedule.linear(T=30, beta_1=0.01, beta_T=0.3)
SCHEDULES = {"linear": SHORT, "quadratic": Schedule.quadratic(30, 0.01, 0.3), "constant": Schedule.constant(30, 0.1)}
each_schedule = pytest.mark.parametrize("s", SCHEDULES.values(), ids=SCHEDULES)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def per_image(equation, s, t, *arrays):
    """The transcription of an equation for each image of a batch, at its own t."""
    results = [equation(s.beta.tolist(), *(x[b].ravel().tolist() for x in arrays), int(t[b])) for b in range(len(t))]
    return [np.array(part) for part in zip(*results, strict=True)] if isinstance(results[0], tuple) else np.array(results)


def close(found, expected):
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=1e-11, atol=1e-13)


# Schedules


def test_appB_schedules_are_linear_quadratic_and_constant():
    T, beta_1, beta_T = 10, 0.01, 0.25
    for t in range(1, T + 1):
        at = (t - 1) / (T - 1)
        assert Schedule.linear(T, beta_1, beta_T).beta[t] == pytest.approx(beta_1 + at * (beta_T - beta_1), rel=1e-12)
        assert Schedule.quadratic(T, beta_1, beta_T).beta[t] == pytest.approx((0.1 + at * 0.4) ** 2, rel=1e-12)
        assert Schedule.constant(T, beta_T).beta[t] == beta_T


def test_appB_schedules_destroy_the_signal_at_the_papers_sizes():
    assert Schedule.linear().alpha_bar[-1] == pytest.approx(4.035829765375676e-5, rel=1e-12)
    assert Schedule.quadratic().alpha_bar[-1] == pytest.approx(7.334e-4, rel=1e-4)
    assert Schedule.constant().alpha_bar[-1] == pytest.approx(1.683e-9, rel=1e-3)


@each_schedule
def test_the_tables_are_the_products_of_the_definition(s):
    beta = s.beta.tolist()
    assert s.T == 30 and all(len(table) == 31 for table in (s.beta, s.alpha, s.alpha_bar, s.beta_tilde))
    assert s.beta[0] == 0 and s.alpha_bar[0] == 1 and s.beta_tilde[1] == 0
    for t in range(1, 31):
        assert s.alpha[t] == literal.alpha(beta, t)
        assert s.alpha_bar[t] == pytest.approx(literal.alpha_bar(beta, t), rel=1e-14)
        assert s.beta_tilde[t] == pytest.approx(literal.eq07(beta, [0.0], [0.0], t)[1], rel=1e-12)
        assert s.beta_tilde[t] < s.beta[t]


def test_the_tables_are_float64_and_cannot_be_written_to():
    s = Schedule(np.array([0, 0.1, 0.2], np.float32))
    for table in s.beta, s.alpha, s.alpha_bar, s.beta_tilde:
        assert table.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            table[1] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.beta = np.zeros(3)
    beta = np.array([0, 0.1, 0.2])
    s = Schedule(beta)
    beta[1] = 0.9                                           # the schedule has its own copy, and the caller's stays writable
    assert s.beta[1] == 0.1


@pytest.mark.parametrize("beta", [[0, 0], [0, 1], [0, -0.1], [0.1, 0.2], [0], [], [0, 0.1, np.nan], [[0, 0.1]], 0.1])
def test_impossible_schedules_are_refused(beta):
    with pytest.raises(ValueError, match="beta .*; expected"):
        Schedule(beta)


def test_paper_constants():
    """Sec. 4: the linear schedule, T = 1000; the digits are computed from β_1 = 10⁻⁴ and β_T = 0.02."""
    bar, tilde = S.alpha_bar, S.beta_tilde
    assert (bar[1], S.beta[1], S.beta[1000]) == (pytest.approx(0.9999, rel=1e-15), 1e-4, 0.02)
    assert f"{bar[500]:.11f} {bar[1000]:.15e}" == "0.07858724288 4.035829765375676e-05"
    assert f"{bar[1000] ** 0.5:.7f} {(1 - bar[1000]) ** 0.5:.8f} {bar[1000] ** -0.5:.4f}" == "0.0063528 0.99997982 157.4105"
    assert f"{S.beta[2]:.7e} {tilde[2]:.8e} {tilde[3]:.5e}" == "1.1991992e-04 5.45318766e-05 8.54891e-05"
    assert f"{tilde[488]:.8f} {tilde[1000]:.10f} {tilde[2] / S.beta[2]:.4f}" == "0.00979157 0.0199999835 0.4547"
    weight = S.beta[1:]**2 / (2 * S.alpha[1:] * (1 - bar[1:]))             # of Eq. (12), times σ_t²
    for t, expected in {1: ".50005", 2: ".272692", 500: ".00550343", 1000: ".01020449"}.items():
        assert f"{weight[t - 1] / S.beta[t]:.{len(expected) - 1}f}" == f"0{expected}"
    assert f"{weight[1] / tilde[2]:.6f} {weight[499] / tilde[500]:.7f}" == "0.599672 0.0055082"
    floor = kl(0, tilde[2:], 0, S.beta[2:]) / math.log(2)
    assert f"{floor.sum():.5f} {floor[0]:.6f} {floor[1]:.7f}" == "0.48642 0.175125 0.0746195"
    for square, bits in {0.2: "5.82e-06", 0.25: "7.28e-06", 0.3: "8.73e-06", 1: "2.91e-05"}.items():
        L_T = kl(math.sqrt(bar[1000] * square), 1 - bar[1000], 0, 1) / math.log(2)
        assert f"{L_T:.2e}" == bits                                        # the paper: about 1e-5


def test_sec32_sigma2_is_beta_or_beta_tilde():
    np.testing.assert_array_equal(S.sigma2("beta"), S.beta)
    sigma2 = S.sigma2("beta_tilde")
    np.testing.assert_array_equal(sigma2[2:], S.beta_tilde[2:])
    assert sigma2[1] == S.beta_tilde[2]                                    # the decoder's: β̃_1 is 0
    assert S.beta_tilde[1] == 0                                            # and the table is as it was
    assert Schedule.constant(T=1, beta=0.3).sigma2("beta_tilde")[1] == 0.3
    with pytest.raises(ValueError, match="sigma2 is 'large'; expected"):
        S.sigma2("large")


# The forward process

X0, X_T, EPS, AT = draw(5, 2, 3, 1), draw(5, 2, 3, 1, seed=1), draw(5, 2, 3, 1, seed=2), np.array([1, 2, 7, 29, 30])


@each_schedule
def test_eq02_is_one_step_of_the_chain(s):
    mean, var = per_image(lambda beta, x, t: literal.eq02(beta, x, t), s, AT, X0)
    close(q_step(s, X0, AT, np.zeros_like(X0)), mean)
    noise = q_step(s, np.zeros_like(X0), AT, EPS)
    close(noise**2, (var[:, None] * EPS.reshape(5, 6) ** 2))
    close(q_step(s, X0, AT, EPS), mean + noise.reshape(5, 6))


@each_schedule
def test_eq02_composed_t_times_is_eq04_exactly(s):
    """Image k of the batch takes noise 1 at step k and 0 at the others: what it ends with is that noise's coefficient in x_t."""
    x = np.zeros((s.T + 1, 1))
    x[0] = 1                                                               # image 0: x_0 = 1 and no noise
    for t in range(1, s.T + 1):
        eps = np.zeros_like(x)
        eps[t] = 1
        x = q_step(s, x, t, eps)
        mean, var = q_marginal(s, np.ones((1, 1)), t)
        assert x[0].item() == pytest.approx(mean.item(), rel=1e-12)
        assert (x[1:] ** 2).sum() == pytest.approx(var, rel=1e-11)


@each_schedule
def test_eq04_is_the_marginal_and_its_draw(s):
    mean, var = per_image(literal.eq04, s, AT, X0)
    found_mean, found_var = q_marginal(s, X0, AT)
    close(found_mean, mean)
    close(found_var, var)
    close(q_sample(s, X0, AT, EPS), per_image(literal.x_t_of, s, AT, X0, EPS))
    np.testing.assert_array_equal(q_sample(s, X0, 0, EPS), X0)             # t = 0 is the data
    assert q_marginal(s, X0, 0)[1] == 0
    np.testing.assert_array_equal(q_sample(s, X0, np.array([0, 1, 2, 3, 4]), EPS)[0], X0[0])


def test_eq04_draws_have_its_mean_and_variance():
    n, t = 100_000, 500
    eps = np.random.default_rng(0).standard_normal((n, 1))
    x_t = q_sample(S, np.full((n, 1), 0.8), t, eps)
    mean, var = literal.eq04(S.beta.tolist(), [0.8], t)
    assert abs(x_t.mean() - mean[0]) < 5 * math.sqrt(var / n) and abs(x_t.var() / var - 1) < 5 * math.sqrt(2 / n)


# The posterior


@each_schedule
def test_eq06_is_bayes_rule(s):
    """q(x_t | x_{t−1}) q(x_{t−1} | x_0) = q(x_{t−1} | x_t, x_0) q(x_t | x_0), as log-densities, at arbitrary points."""
    x0, x_prev, x_t = draw(7, 1), draw(7, 1, seed=1), draw(7, 1, seed=2)
    for t in range(2, s.T + 1):
        step = log_density(x_t, math.sqrt(s.alpha[t]) * x_prev, s.beta[t])
        before, after = (log_density(x, *q_marginal(s, x0, u)) for x, u in ((x_prev, t - 1), (x_t, t)))
        posterior = log_density(x_prev, *q_posterior(s, x0, x_t, t))
        np.testing.assert_allclose(step + before, posterior + after, rtol=1e-10, atol=1e-10)
        close(posterior, [literal.eq06(s.beta.tolist(), [a], [b], [c], t)
                          for a, b, c in zip(x_prev[:, 0], x_t[:, 0], x0[:, 0], strict=True)])


@each_schedule
def test_eq07_is_the_posteriors_mean_and_variance(s):
    mean, var = per_image(literal.eq07, s, AT, X0, X_T)
    found_mean, found_var = q_posterior(s, X0, X_T, AT)
    close(found_mean, mean)
    close(found_var, var)
    np.testing.assert_allclose(q_posterior(s, X0, X_T, 1)[0], X0, rtol=1e-12)     # ᾱ_0 = 1: at t = 1 it is x_0 itself
    assert q_posterior(s, X0, X_T, 1)[1] == 0


def test_eq07_coefficients_of_the_paper():
    for t, x0, x_t in (1, "1.00000000", "0.00000000"), (500, "0.00307007", "0.99410667"), (1000, "0.00012835", "0.98994868"):
        one, zero = np.ones((1, 1)), np.zeros((1, 1))
        assert f"{q_posterior(S, one, zero, t)[0].item():.8f}" == x0
        assert f"{q_posterior(S, zero, one, t)[0].item():.8f}" == x_t


# In terms of ε


@each_schedule
def test_eq09_the_posterior_mean_at_the_x0_that_the_noise_gives_away(s):
    x_t = q_sample(s, X0, AT, EPS)
    np.testing.assert_allclose(q_posterior(s, x0_hat(s, x_t, AT, EPS), x_t, AT)[0], q_posterior(s, X0, x_t, AT)[0], atol=1e-12)
    sigma2, mu = s.beta.tolist(), draw(5, 6, seed=3)
    mu_tilde = q_posterior(s, x0_hat(s, x_t, AT, EPS), x_t, AT)[0].reshape(5, 6)
    found = ((mu_tilde - mu) ** 2).sum(axis=1) / (2 * s.beta[AT])
    close(found, [literal.eq09(s.beta.tolist(), lambda x, t, b=b: mu[b].tolist(), sigma2, X0[b].ravel().tolist(),
                               EPS[b].ravel().tolist(), int(AT[b])) for b in range(5)])


@each_schedule
def test_eq10_the_target_of_the_mean_in_terms_of_the_noise(s):
    x_t = q_sample(s, X0, AT, EPS)
    np.testing.assert_allclose(mu_theta(s, x_t, AT, EPS), q_posterior(s, X0, x_t, AT)[0], rtol=1e-9, atol=1e-12)
    sigma2, mu = s.beta.tolist(), draw(5, 6, seed=3)
    found = ((mu_theta(s, x_t, AT, EPS).reshape(5, 6) - mu) ** 2).sum(axis=1) / (2 * s.beta[AT])
    close(found, [literal.eq10(s.beta.tolist(), lambda x, t, b=b: mu[b].tolist(), sigma2, X0[b].ravel().tolist(),
                               EPS[b].ravel().tolist(), int(AT[b])) for b in range(5)])


@each_schedule
def test_eq11_is_eq07_at_eq15(s):
    close(mu_theta(s, X_T, AT, EPS), q_posterior(s, x0_hat(s, X_T, AT, EPS), X_T, AT)[0])
    for equation in literal.eq11, literal.eq11_middle:
        close(mu_theta(s, X_T, AT, EPS),
              per_image(lambda beta, x_t, eps, t, eq=equation: eq(beta, lambda x, t: eps, x_t, t), s, AT, X_T, EPS))


@each_schedule
def test_eq15_is_eq04_solved_for_x0(s):
    expected = per_image(lambda beta, x_t, eps, t: literal.eq15(beta, lambda x, t: eps, x_t, t), s, AT, X_T, EPS)
    close(x0_hat(s, X_T, AT, EPS), expected)
    np.testing.assert_allclose(x0_hat(s, q_sample(s, X0, AT, EPS), AT, EPS), X0, rtol=1e-9, atol=1e-11)


# dtypes, shapes and errors

FUNCTIONS = {"q_step": lambda t, x, e: q_step(S, x, t, e), "q_marginal": lambda t, x, e: q_marginal(S, x, t)[0],
             "q_sample": lambda t, x, e: q_sample(S, x, t, e), "q_posterior": lambda t, x, e: q_posterior(S, x, e, t)[0],
             "x0_hat": lambda t, x, e: x0_hat(S, x, t, e), "mu_theta": lambda t, x, e: mu_theta(S, x, t, e)}
each_function = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)


@each_function
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("t", [300, np.int64(300), np.array(300), np.array([1, 300, 1000, 2, 3]), [1, 300, 1000, 2, 3]])
def test_dtype_and_shape_are_those_of_x(f, dtype, t):
    x, eps = X0.astype(dtype), EPS.astype(dtype)
    out = f(t, x, eps)
    assert out.dtype == dtype and out.shape == x.shape
    if dtype == np.float32:
        np.testing.assert_allclose(out, f(t, x.astype(np.float64), eps.astype(np.float64)), rtol=1e-5, atol=1e-5)


@each_function
def test_one_t_for_all_images_is_that_t_for_each(f):
    np.testing.assert_allclose(f(77, X0, EPS), f(np.full(5, 77), X0, EPS), rtol=1e-14, atol=1e-15)
    mixed = f(np.array([5, 77, 900, 1, 1000]), X0, EPS)
    for b, t in enumerate((5, 77, 900, 1, 1000)):
        np.testing.assert_allclose(f(t, X0[b:b + 1], EPS[b:b + 1])[0], mixed[b], rtol=1e-14, atol=1e-15)


def test_variances_broadcast_like_x():
    for var, at in ((q_marginal(S, X0, AT)[1], 1 - S.alpha_bar[AT]), (q_posterior(S, X0, X_T, AT)[1], S.beta_tilde[AT])):
        assert var.shape == (5, 1, 1, 1)
        np.testing.assert_array_equal(var.ravel(), at)
    assert q_marginal(S, X0.astype(np.float32), AT)[1].dtype == np.float32
    assert q_marginal(S, X0, 500)[1] == 1 - S.alpha_bar[500]


@each_function
@pytest.mark.parametrize("t", [-1, 1001, np.array([1, 1001, 1, 1, 1]), np.array([1, -1, 1, 1, 1])])
def test_t_out_of_range_is_refused(f, t):
    with pytest.raises(ValueError, match=r"t runs from .* to .*; expected [01]..1000"):
        f(t, X0, EPS)


@each_function
@pytest.mark.parametrize("t", [1.0, True, np.array([0.5] * 5), "1"])
def test_t_of_another_kind_is_refused(f, t):
    with pytest.raises(ValueError, match=r"t has dtype .*; expected integers in [01]..1000"):
        f(t, X0, EPS)


def test_t_0_is_for_the_marginal_alone():
    for name, f in FUNCTIONS.items():
        if name in ("q_marginal", "q_sample"):
            np.testing.assert_array_equal(f(0, X0, EPS), X0)
        else:
            with pytest.raises(ValueError, match="t runs from 0 to 0; expected 1..1000"):
                f(0, X0, EPS)


def test_arguments_are_left_alone():
    for f in FUNCTIONS.values():
        x, eps, t = X0.copy(), EPS.copy(), AT.copy()
        for array in x, eps, t:
            array.setflags(write=False)
        f(t, x, eps)


# The transcription agrees with itself where two of the paper's equations are one


def gaussian_model(m=0.4, v=0.3):
    """The best ε_θ of data N(m, v) in each coordinate, its μ_θ, and σ_t² = β_t."""
    beta = SHORT.beta.tolist()

    def eps_theta(x_t, t):
        a_bar = literal.alpha_bar(beta, t)
        return [math.sqrt(1 - a_bar) * (x - math.sqrt(a_bar) * m) / (a_bar * v + 1 - a_bar) for x in x_t]

    return beta, eps_theta, lambda x, t: literal.eq11(beta, eps_theta, x, t), lambda x, t: [beta[t]] * len(x)


def test_literal_eq08_to_eq12_are_one_number():
    beta, eps_theta, mu, _ = gaussian_model()
    x0, eps = [0.3, -0.9, 0.5], [1.1, -0.2, 0.4]
    for t in range(1, 31):
        x_t = literal.x_t_of(beta, x0, eps, t)
        one = literal.eq08(beta, mu, beta, x0, x_t, t)
        others = [literal.eq09(beta, mu, beta, x0, eps, t), literal.eq10(beta, mu, beta, x0, eps, t),
                  literal.eq12(beta, eps_theta, beta, x0, eps, t)]
        assert others == pytest.approx([one] * 3, rel=1e-9)


def test_literal_eq03_eq05_and_eq16_have_one_expectation():
    """For Gaussian data every expectation is that of a quadratic: Gauss-Hermite quadrature with three nodes is exact."""
    m, v = 0.4, 0.3
    beta, _, mu, Sigma = gaussian_model(m, v)
    T = len(beta) - 1
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    nodes, weights = nodes.tolist(), (weights / weights.sum()).tolist()

    def density(x0, x1):
        return literal.log_N(x0, mu(x1, 1), Sigma(x1, 1))

    eq05 = 0.0
    for node0, weight0 in zip(nodes, weights, strict=True):
        for node, weight in zip(nodes, weights, strict=True):
            x0 = [m + math.sqrt(v) * node0]
            x = [x0] + [literal.x_t_of(beta, x0, [node], t) for t in range(1, T + 1)]
            eq05 += weight0 * weight * sum(literal.eq05(beta, mu, Sigma, x, density))
    eq16 = literal.eq16_gaussian(beta, mu, Sigma, m, v, points=201)
    assert eq16 == pytest.approx(eq05, rel=1e-9)

    rng, n, eq03 = np.random.default_rng(0), 400, []
    for _ in range(n):
        x = [[m + math.sqrt(v) * rng.standard_normal()]]
        for t in range(1, T + 1):
            mean, var = literal.eq02(beta, x[-1], t)
            x.append([mean[0] + math.sqrt(var) * rng.standard_normal()])
        eq03.append(literal.eq03(beta, mu, Sigma, x))
        assert eq03[-1] == pytest.approx(literal.eq02_trajectory(beta, x) - literal.eq01(mu, Sigma, x), abs=1e-10)
    assert abs(np.mean(eq03) - eq05) < 5 * np.std(eq03) / math.sqrt(n)


def test_literal_eq03_and_eq16_are_equal_for_finite_distributions():
    rng = np.random.default_rng(1)
    keys = [(a, b, c) for a in range(3) for b in range(2) for c in range(2)]
    q, p = (dict(zip(keys, rng.dirichlet(np.ones(len(keys))), strict=True)) for _ in range(2))
    markov = {}                                                            # Eq. (1), (2): both are Markov chains
    for name, joint in ("q", q), ("p", p):
        last, middle, pair, step = ({} for _ in range(4))
        for (a, b, c), probability in joint.items():
            for table, key in ((last, c), (middle, b), (pair, (b, c)), (step, (a, b))):
                table[key] = table.get(key, 0) + probability
        markov[name] = {(a, b, c): pair[b, c] * step[a, b] / middle[b] for a, b, c in keys}
    q_chain, p_chain = markov["q"], markov["p"]
    assert literal.eq16_finite(q_chain, p_chain) == pytest.approx(literal.eq03_finite(q_chain, p_chain), rel=1e-12)
    entropy = literal.eq16_finite(q_chain, q_chain)                        # a perfect model: L is the data's entropy
    data = [sum(x for key, x in q.items() if key[0] == a) for a in range(3)]
    assert entropy == pytest.approx(-sum(x * math.log(x) for x in data), rel=1e-12)


def test_literal_alg3_and_alg4_pass_the_same_messages():
    beta, _, mu, _ = gaussian_model()
    rng, wire, heard = np.random.default_rng(0), [], []
    x0 = [0.25, -0.5]

    def send(t, q, p):
        (mean, var), message = q, []
        message = [a + math.sqrt(var) * rng.standard_normal() for a in mean]
        wire.append((t, p, message))
        return message

    def receive(t, p):
        sent_t, sent_p, message = wire[len(heard)]
        assert (t, p) == (sent_t, sent_p)                                  # the receiver knows the same p
        heard.append(message)
        return message

    literal.alg3(beta, mu, beta, x0, send)
    assert literal.alg4(beta, mu, beta, 2, receive) == x0
    assert [t for t, _, _ in wire] == list(range(30, -1, -1))
