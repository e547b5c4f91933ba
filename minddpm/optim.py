"""Adam, warm-up, gradient clipping and the average of the weights (Sec. 4, App. B); `adam` and `ema` work in place."""

import math

import numpy as np

from minddpm import tree


def learning_rate(step, peak, warmup=0, final=None, steps=None):
    """The learning rate of training step 1, 2, …: linear warm-up to `peak`, then constant, or a half cosine down to `final`.

    Warm-up is in the released code (utils.py:145-148; 5,000 steps) and not in the paper; the decay, for short runs, is in
    neither.  `final` needs `steps`, the step at which it is reached.
    """
    if step <= warmup:
        return peak * step / warmup
    if final is None:
        return peak
    progress = min(1, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def global_norm(gradient):
    """√(Σ g²) over all leaves of the tree, an array ()."""
    return np.sqrt(sum(np.vdot(g, g) for g in tree.leaves(gradient)))


def adam(params, m, v, gradient, step, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """App. B.  One step of Adam (Kingma and Ba, Algorithm 1), in place on the trees params, m and v; step counts from 1.

        m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
        m̂ = m / (1 − β₁^step)        v̂ = v / (1 − β₂^step)        θ ← θ − lr m̂ / (√v̂ + ε)

    The released code's TensorFlow adds ε to √v instead of √v̂.
    """
    def update(p, m, v, g):
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**step)
        v_hat = v / (1 - beta2**step)
        p -= lr * m_hat / (np.sqrt(v_hat) + eps)

    tree.map(update, params, m, v, gradient)


def ema(average, params, step, decay):
    """Sec. 4, App. B.  Exponential moving average of the weights, in place: a ← decay · a + (1 − decay) θ.

    The first step copies, as in the released code (tpu_utils.py:89-92): the random initial weights leave no trace.
    """
    weight = 1.0 if step == 1 else 1 - decay

    def update(a, p):
        a += weight * (p - a)

    tree.map(update, average, params)
