"""The paper's Eq. (1)-(16) and Alg. 1-4, transcribed: plain Python floats, one loop a sum, t = 1..T.  Read it beside the PDF.

Nothing here is fast and nothing is shared with minddpm: this is what minddpm is tested against.

    beta[t]             β_t for t = 1..T, in a list of length T+1; beta[0] is never read
    x, x0, x_t, eps     a vector: a list of D floats
    x[0..T]             a trajectory: the list of the vectors x_0, x_1, …, x_T
    eps_theta(x_t, t)   ε_θ, mu_theta(x_t, t) μ_θ: functions of a vector and t that return a vector
    Sigma_theta(x_t, t) the D numbers on the diagonal of Σ_θ;    sigma2[t], sigma[t]  σ_t², σ_t where Σ_θ = σ_t² I
Densities are logarithms, and information is in nats.
"""

import math

# What the paper writes without defining it --------------------------------------------------------------------------------


def norm2(v):
    """‖v‖²."""
    return sum(v_i**2 for v_i in v)


def log_N(x, mean, var):
    """log N(x; mean, diag(var)), var a list of D variances."""
    return sum(-0.5 * math.log(2 * math.pi * var_i) - (x_i - mean_i) ** 2 / (2 * var_i)
               for x_i, mean_i, var_i in zip(x, mean, var, strict=True))


def KL_N(mean1, var1, mean2, var2):
    """KL( N(mean1, diag(var1)) ‖ N(mean2, diag(var2)) )."""
    return sum(0.5 * (v1 / v2 - 1 + (m1 - m2) ** 2 / v2 + math.log(v2 / v1))
               for m1, v1, m2, v2 in zip(mean1, var1, mean2, var2, strict=True))


def alpha(beta, t):
    """α_t = 1 − β_t   (below Eq. (3))."""
    return 1 - beta[t]


def alpha_bar(beta, t):
    """ᾱ_t = ∏_{s=1}^t α_s   (below Eq. (3)); the empty product ᾱ_0 is 1."""
    product = 1.0
    for s in range(1, t + 1):
        product *= alpha(beta, s)
    return product


def x_t_of(beta, x0, eps, t):
    """x_t(x_0, ε) = √ᾱ_t x_0 + √(1 − ᾱ_t) ε   (below Eq. (8))."""
    a_bar = alpha_bar(beta, t)
    return [math.sqrt(a_bar) * x0_i + math.sqrt(1 - a_bar) * eps_i for x0_i, eps_i in zip(x0, eps, strict=True)]


# Section 2: Background ----------------------------------------------------------------------------------------------------


def eq01(mu_theta, Sigma_theta, x):
    """Eq. (1).  log p_θ(x_{0:T}) = log p(x_T) + Σ_{t=1}^T log p_θ(x_{t−1} | x_t).

        p_θ(x_{t−1} | x_t) = N(x_{t−1}; μ_θ(x_t, t), Σ_θ(x_t, t)),    p(x_T) = N(x_T; 0, I)
    """
    T, D = len(x) - 1, len(x[0])
    log_p = log_N(x[T], [0.0] * D, [1.0] * D)
    for t in range(1, T + 1):
        log_p += log_N(x[t - 1], mu_theta(x[t], t), Sigma_theta(x[t], t))
    return log_p


def eq02(beta, x_prev, t):
    """Eq. (2).  Mean and variance of q(x_t | x_{t−1}) = N(x_t; √(1−β_t) x_{t−1}, β_t I)."""
    return [math.sqrt(1 - beta[t]) * x_i for x_i in x_prev], beta[t]


def eq02_trajectory(beta, x):
    """Eq. (2).  log q(x_{1:T} | x_0) = Σ_{t=1}^T log q(x_t | x_{t−1})."""
    log_q = 0.0
    for t in range(1, len(x)):
        mean, var = eq02(beta, x[t - 1], t)
        log_q += log_N(x[t], mean, [var] * len(mean))
    return log_q


def eq03(beta, mu_theta, Sigma_theta, x, log_p_x0=None):
    """Eq. (3).  What stands inside E_q[…], for one trajectory x_0, …, x_T; its expectation is L.

        − log p(x_T) − Σ_{t≥1} log p_θ(x_{t−1} | x_t) / q(x_t | x_{t−1})

    log_p_x0(x0, x1), where given, is log p_θ(x_0 | x_1): Eq. (13) for data of discrete levels.
    """
    T, D = len(x) - 1, len(x[0])
    total = -log_N(x[T], [0.0] * D, [1.0] * D)
    for t in range(1, T + 1):
        if t == 1 and log_p_x0:
            log_p = log_p_x0(x[0], x[1])
        else:
            log_p = log_N(x[t - 1], mu_theta(x[t], t), Sigma_theta(x[t], t))
        mean, var = eq02(beta, x[t - 1], t)
        log_q = log_N(x[t], mean, [var] * D)
        total -= log_p - log_q
    return total


def eq03_finite(q, p):
    """Eq. (3).  L = E_q[ −log p_θ(x_{0:T}) / q(x_{1:T} | x_0) ] of finite joint distributions {(x_0, …, x_T): probability}."""
    L = 0.0
    for x, q_x in q.items():
        if q_x > 0:
            L += q_x * -math.log(p[x] / (q_x / _marginal(q, 0)[x[0], ]))
    return L


def eq04(beta, x0, t):
    """Eq. (4).  Mean and variance of q(x_t | x_0) = N(x_t; √ᾱ_t x_0, (1−ᾱ_t) I)."""
    a_bar = alpha_bar(beta, t)
    return [math.sqrt(a_bar) * x0_i for x0_i in x0], 1 - a_bar


def eq05(beta, mu_theta, Sigma_theta, x, log_p_x0):
    """Eq. (5).  The list [L_0, L_1, …, L_T] for the vectors x_0, x_1, …, x_T; the expectation over q of its sum is L.

        L_T     = KL( q(x_T | x_0) ‖ p(x_T) )
        L_{t−1} = KL( q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t) )        for t > 1
        L_0     = − log p_θ(x_0 | x_1)

    log_p_x0(x0, x1) is log p_θ(x_0 | x_1).  Each x_t meets x_0 alone: the x_t may also be independent draws from q(x_t | x_0).
    """
    T, D = len(x) - 1, len(x[0])
    L = [0.0] * (T + 1)
    mean, var = eq04(beta, x[0], T)
    L[T] = KL_N(mean, [var] * D, [0.0] * D, [1.0] * D)
    for t in range(2, T + 1):
        mu_tilde, beta_tilde = eq07(beta, x[0], x[t], t)
        L[t - 1] = KL_N(mu_tilde, [beta_tilde] * D, mu_theta(x[t], t), Sigma_theta(x[t], t))
    L[0] = -log_p_x0(x[0], x[1])
    return L


def eq06(beta, x_prev, x_t, x0, t):
    """Eq. (6).  log q(x_{t−1} | x_t, x_0) = log N(x_{t−1}; μ̃_t(x_t, x_0), β̃_t I)."""
    mu_tilde, beta_tilde = eq07(beta, x0, x_t, t)
    return log_N(x_prev, mu_tilde, [beta_tilde] * len(x0))


def eq07(beta, x0, x_t, t):
    """Eq. (7).  The posterior's mean and variance.

        μ̃_t(x_t, x_0) := √ᾱ_{t−1} β_t / (1 − ᾱ_t) x_0 + √α_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t) x_t
        β̃_t           := (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t
    """
    a_t, a_bar, a_bar_prev = alpha(beta, t), alpha_bar(beta, t), alpha_bar(beta, t - 1)
    mu_tilde = [math.sqrt(a_bar_prev) * beta[t] / (1 - a_bar) * x0_i + math.sqrt(a_t) * (1 - a_bar_prev) / (1 - a_bar) * x_i
                for x0_i, x_i in zip(x0, x_t, strict=True)]
    beta_tilde = (1 - a_bar_prev) / (1 - a_bar) * beta[t]
    return mu_tilde, beta_tilde


# Section 3.2: Reverse process and L_{1:T−1} -------------------------------------------------------------------------------


def eq08(beta, mu_theta, sigma2, x0, x_t, t):
    """Eq. (8).  What stands inside E_q[…]:  1/(2σ_t²) ‖ μ̃_t(x_t, x_0) − μ_θ(x_t, t) ‖²."""
    mu_tilde, _ = eq07(beta, x0, x_t, t)
    return 1 / (2 * sigma2[t]) * norm2([a - b for a, b in zip(mu_tilde, mu_theta(x_t, t), strict=True)])


def eq09(beta, mu_theta, sigma2, x0, eps, t):
    """Eq. (9).  1/(2σ_t²) ‖ μ̃_t( x_t(x_0,ε), 1/√ᾱ_t (x_t(x_0,ε) − √(1−ᾱ_t) ε) ) − μ_θ(x_t(x_0,ε), t) ‖²."""
    a_bar = alpha_bar(beta, t)
    x_t = x_t_of(beta, x0, eps, t)
    mu_tilde, _ = eq07(beta, [1 / math.sqrt(a_bar) * (x_i - math.sqrt(1 - a_bar) * eps_i)
                              for x_i, eps_i in zip(x_t, eps, strict=True)], x_t, t)
    return 1 / (2 * sigma2[t]) * norm2([a - b for a, b in zip(mu_tilde, mu_theta(x_t, t), strict=True)])


def eq10(beta, mu_theta, sigma2, x0, eps, t):
    """Eq. (10).  1/(2σ_t²) ‖ 1/√α_t ( x_t(x_0,ε) − β_t/√(1−ᾱ_t) ε ) − μ_θ(x_t(x_0,ε), t) ‖²."""
    x_t = x_t_of(beta, x0, eps, t)
    target = [1 / math.sqrt(alpha(beta, t)) * (x_i - beta[t] / math.sqrt(1 - alpha_bar(beta, t)) * eps_i)
              for x_i, eps_i in zip(x_t, eps, strict=True)]
    return 1 / (2 * sigma2[t]) * norm2([a - b for a, b in zip(target, mu_theta(x_t, t), strict=True)])


def eq11(beta, eps_theta, x_t, t):
    """Eq. (11), right.  μ_θ(x_t, t) = 1/√α_t ( x_t − β_t/√(1−ᾱ_t) ε_θ(x_t, t) )."""
    return [1 / math.sqrt(alpha(beta, t)) * (x_i - beta[t] / math.sqrt(1 - alpha_bar(beta, t)) * eps_i)
            for x_i, eps_i in zip(x_t, eps_theta(x_t, t), strict=True)]


def eq11_middle(beta, eps_theta, x_t, t):
    """Eq. (11), middle.  μ_θ(x_t, t) = μ̃_t( x_t, 1/√ᾱ_t (x_t − √(1−ᾱ_t) ε_θ(x_t)) )."""
    a_bar = alpha_bar(beta, t)
    mu_tilde, _ = eq07(beta, [1 / math.sqrt(a_bar) * (x_i - math.sqrt(1 - a_bar) * eps_i)
                              for x_i, eps_i in zip(x_t, eps_theta(x_t, t), strict=True)], x_t, t)
    return mu_tilde


def eq12(beta, eps_theta, sigma2, x0, eps, t):
    """Eq. (12).  β_t² / (2σ_t² α_t (1−ᾱ_t)) ‖ ε − ε_θ(√ᾱ_t x_0 + √(1−ᾱ_t) ε, t) ‖²."""
    weight = beta[t] ** 2 / (2 * sigma2[t] * alpha(beta, t) * (1 - alpha_bar(beta, t)))
    return weight * eq14(beta, eps_theta, x0, eps, t)


# Section 3.3: Data scaling, reverse process decoder, and L_0 --------------------------------------------------------------


def eq13(x0, mu, sigma, levels=256):
    """Eq. (13).  p_θ(x_0 | x_1) = ∏_{i=1}^D ∫_{δ₋(x_0^i)}^{δ₊(x_0^i)} N(x; μ_θ^i(x_1, 1), σ_1²) dx, with mu = μ_θ(x_1, 1)."""
    product = 1.0
    for x_i, mu_i in zip(x0, mu, strict=True):
        product *= eq13_integral(x_i, mu_i, sigma, levels)
    return product


def eq13_log(x0, mu, sigma, levels=256):
    """Eq. (13).  log p_θ(x_0 | x_1): the logarithm of the product, which need not underflow where the product does."""
    return sum(math.log(eq13_integral(x_i, mu_i, sigma, levels)) for x_i, mu_i in zip(x0, mu, strict=True))


def eq13_integral(x, mu, sigma, levels=256):
    """Eq. (13).  The integral for one coordinate, by the error function.  The paper's 255 is levels − 1.

        δ₊(x) = ∞ if x = 1,  x + 1/255 if x < 1            δ₋(x) = −∞ if x = −1,  x − 1/255 if x > −1
    """
    delta_plus = math.inf if x == 1 else x + 1 / (levels - 1)
    delta_minus = -math.inf if x == -1 else x - 1 / (levels - 1)
    lower, upper = (delta_minus - mu) / sigma, (delta_plus - mu) / sigma
    if lower > 0:                                                           # the same area mirrored: no 1 − 1 in the upper tail
        lower, upper = -upper, -lower
    return 0.5 * math.erfc(-upper / math.sqrt(2)) - 0.5 * math.erfc(-lower / math.sqrt(2))


def eq13_tanh(x, mu, sigma, levels=256):
    """Eq. (13) as the released code computes it (utils.py:112-133): log-probability of one coordinate.

    Φ(z) ≈ ½ (1 + tanh(√(2/π) (z + 0.044715 z³))), the ends of the range recognised at ±0.999, logarithms floored at log 1e-12.
    """
    def cdf(z):
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    cdf_plus = cdf((x - mu + 1 / (levels - 1)) / sigma)
    cdf_min = cdf((x - mu - 1 / (levels - 1)) / sigma)
    if x < -0.999:
        return math.log(max(cdf_plus, 1e-12))
    if x > 0.999:
        return math.log(max(1 - cdf_min, 1e-12))
    return math.log(max(cdf_plus - cdf_min, 1e-12))


# Section 3.4: Simplified training objective, and Section 4.3: Progressive coding ------------------------------------------


def eq14(beta, eps_theta, x0, eps, t):
    """Eq. (14).  What stands inside E_{t,x_0,ε}[…]:  ‖ ε − ε_θ(√ᾱ_t x_0 + √(1−ᾱ_t) ε, t) ‖²."""
    a_bar = alpha_bar(beta, t)
    x_t = [math.sqrt(a_bar) * x0_i + math.sqrt(1 - a_bar) * eps_i for x0_i, eps_i in zip(x0, eps, strict=True)]
    return norm2([a - b for a, b in zip(eps, eps_theta(x_t, t), strict=True)])


def eq15(beta, eps_theta, x_t, t):
    """Eq. (15).  x_0 ≈ x̂_0 = (x_t − √(1−ᾱ_t) ε_θ(x_t)) / √ᾱ_t."""
    a_bar = alpha_bar(beta, t)
    return [(x_i - math.sqrt(1 - a_bar) * eps_i) / math.sqrt(a_bar)
            for x_i, eps_i in zip(x_t, eps_theta(x_t, t), strict=True)]


def eq16_finite(q, p):
    """Eq. (16).  L of finite joint distributions q and p_θ: {(x_0, …, x_T): probability}.

        L = KL( q(x_T) ‖ p(x_T) ) + E_q[ Σ_{t≥1} KL( q(x_{t−1} | x_t) ‖ p_θ(x_{t−1} | x_t) ) ] + H(x_0)
    """
    T = len(next(iter(q))) - 1
    q_T, p_T = _marginal(q, T), _marginal(p, T)
    L = sum(q_T[x_T] * math.log(q_T[x_T] / p_T[x_T]) for x_T in q_T if q_T[x_T] > 0)
    for t in range(1, T + 1):
        q_both, q_t, p_both, p_t = _marginal(q, t - 1, t), _marginal(q, t), _marginal(p, t - 1, t), _marginal(p, t)
        for (x_prev, x_t), weight in q_both.items():
            if weight > 0:
                L += weight * math.log((weight / q_t[x_t, ]) / (p_both[x_prev, x_t] / p_t[x_t, ]))
    q_0 = _marginal(q, 0)
    return L + sum(-q_0[x_0] * math.log(q_0[x_0]) for x_0 in q_0 if q_0[x_0] > 0)


def eq16_gaussian(beta, mu_theta, Sigma_theta, m, v, points=2001, width=10.0):
    """Eq. (16).  L for one-dimensional Gaussian data q(x_0) = N(m, v), where all of q is known; E_q by the trapezoidal rule.

        q(x_t) = N(√ᾱ_t m, ᾱ_t v + 1 − ᾱ_t)        q(x_{t−1} | x_t) ∝ q(x_t | x_{t−1}) q(x_{t−1})        H(x_0) = ½ log(2πe v)
    """
    T = len(beta) - 1

    def q(t):
        return math.sqrt(alpha_bar(beta, t)) * m, alpha_bar(beta, t) * v + 1 - alpha_bar(beta, t)

    mean_T, var_T = q(T)
    L = KL_N([mean_T], [var_T], [0.0], [1.0]) + 0.5 * math.log(2 * math.pi * math.e * v)
    for t in range(1, T + 1):
        (mean_prev, var_prev), (mean_t, var_t) = q(t - 1), q(t)
        precision = alpha(beta, t) / beta[t] + 1 / var_prev
        step = 2 * width * math.sqrt(var_t) / (points - 1)
        for i in range(points):
            x_t = mean_t + (i - (points - 1) / 2) * step
            q_mean = (math.sqrt(alpha(beta, t)) / beta[t] * x_t + mean_prev / var_prev) / precision
            kl = KL_N([q_mean], [1 / precision], mu_theta([x_t], t), Sigma_theta([x_t], t))
            L += step * math.exp(log_N([x_t], [mean_t], [var_t])) * kl
    return L


def _marginal(joint, *places):
    """{values at these places of the trajectory: probability}."""
    total = {}
    for x, probability in joint.items():
        key = tuple(x[t] for t in places)
        total[key] = total.get(key, 0.0) + probability
    return total


# Algorithms ---------------------------------------------------------------------------------------------------------------


def alg1(beta, theta, eps_theta, q_x0, uniform, normal, learning_rate, h=1e-4):
    """Alg. 1.  Training: one pass through the loop -> the new θ, a list of floats.

    eps_theta(theta, x_t, t) is the model, q_x0() draws x_0, uniform(1, T) an integer with both ends, normal() one number.
    The gradient of line 5 is taken by central differences, one θ_i at a time.
    """
    T = len(beta) - 1
    # 1: repeat
    x0 = q_x0()                                                             # 2: x_0 ~ q(x_0)
    t = uniform(1, T)                                                       # 3: t ~ Uniform({1, …, T})
    eps = [normal() for _ in x0]                                            # 4: ε ~ N(0, I)
    gradient = []                                                           # 5: ∇_θ ‖ε − ε_θ(√ᾱ_t x_0 + √(1−ᾱ_t) ε, t)‖²
    for i in range(len(theta)):
        loss = []
        for step in (+h, -h):
            moved = theta[:i] + [theta[i] + step] + theta[i + 1:]
            loss.append(norm2([e - p for e, p in zip(eps, eps_theta(moved, x_t_of(beta, x0, eps, t), t), strict=True)]))
        gradient.append((loss[0] - loss[1]) / (2 * h))
    return [theta_i - learning_rate * g_i for theta_i, g_i in zip(theta, gradient, strict=True)]
    # 6: until converged


def alg2(beta, eps_theta, sigma, x_T, z):
    """Alg. 2.  Sampling -> the trajectory [x_0, …, x_T].  x_T ~ N(0, I) and z[t] ~ N(0, I), t = T..2, are given."""
    T = len(beta) - 1
    x = [None] * T + [x_T]                                                  # 1: x_T ~ N(0, I)
    for t in range(T, 0, -1):                                               # 2: for t = T, …, 1 do
        z_t = z[t] if t > 1 else [0.0] * len(x_T)                           # 3: z ~ N(0, I) if t > 1, else z = 0
        eps = eps_theta(x[t], t)
        x[t - 1] = [1 / math.sqrt(alpha(beta, t)) * (x_i - (1 - alpha(beta, t)) / math.sqrt(1 - alpha_bar(beta, t)) * eps_i)
                    + sigma[t] * z_i                                        # 4: x_{t−1} = 1/√α_t (x_t − …) + σ_t z
                    for x_i, eps_i, z_i in zip(x[t], eps, z_t, strict=True)]
    return x                                                                # 6: return x_0


def alg3(beta, mu_theta, sigma2, x0, send):
    """Alg. 3.  Sending x_0.  send(t, q, p) draws x_t ~ q, tells the receiver, who knows p, which, and returns it.

    q and p are Gaussians (mean, variance).  At t = 0 q is the point x_0, (x0, 0.0), and p is what Eq. (13) integrates.
    """
    T = len(beta) - 1
    x_t = send(T, eq04(beta, x0, T), ([0.0] * len(x0), 1.0))                # 1: send x_T ~ q(x_T|x_0) using p(x_T)
    for t in range(T - 1, 0, -1):                                           # 2: for t = T−1, …, 2, 1 do
        q = eq07(beta, x0, x_t, t + 1)
        p = mu_theta(x_t, t + 1), sigma2[t + 1]
        x_t = send(t, q, p)                                                 # 3: send x_t ~ q(x_t|x_{t+1},x_0), p_θ(x_t|x_{t+1})
    send(0, (x0, 0.0), (mu_theta(x_t, 1), sigma2[1]))                       # 5: send x_0 using p_θ(x_0|x_1)


def alg4(beta, mu_theta, sigma2, D, receive):
    """Alg. 4.  Receiving -> x_0, of D numbers.  receive(t, p) returns the x_t that was sent using p = (mean, variance)."""
    T = len(beta) - 1
    x_t = receive(T, ([0.0] * D, 1.0))                                      # 1: receive x_T using p(x_T)
    for t in range(T - 1, -1, -1):                                          # 2: for t = T−1, …, 1, 0 do
        x_t = receive(t, (mu_theta(x_t, t + 1), sigma2[t + 1]))             # 3: receive x_t using p_θ(x_t|x_{t+1})
    return x_t                                                              # 5: return x_0
