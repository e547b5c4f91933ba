"""Adam, warm-up, gradient clipping and the average of the weights (Sec. 4, App. B).

`adam` and `ema` write into the arrays they update, the only functions of minddpm that change an argument: a training state
is four times the size of the network, and is owned by the training loop alone.
"""

import math

import numpy as np

from minddpm import backend, tree

BLOCK = 2**16               # numbers that adam and ema take at a time


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
    """√(Σ g²) over all leaves of the tree: a float, or on a device an array (), which nobody has waited for."""
    total = sum(np.vdot(g, g) for g in tree.leaves(gradient))
    return np.sqrt(total) if backend.is_cuda(total) else math.sqrt(float(total))


def adam(params, m, v, gradient, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, scale=1.0, each=tree.map):
    """App. B.  One step of Adam (Kingma and Ba, Algorithm 1), in place on params, m and v; step counts from 1.

        m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        θ ← θ − lr m̂ / (√v̂ + ε)

    with m̂ = m / (1 − β₁^step), v̂ = v / (1 − β₂^step).  The released code's TensorFlow adds ε to √v instead of √v̂.
    g is scale times the gradient.  each: how to go over the leaves, Workers.each with several threads.
    """
    correct1, correct2 = 1 - beta1**step, 1 - beta2**step

    def update(*leaves):
        for p, m, v, g in _blocks(*leaves):
            g = scale * g
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            p -= (lr / correct1) * m / (np.sqrt(v / correct2) + eps)

    each(update, params, m, v, gradient)


def ema(average, params, step, decay, each=tree.map):
    """Sec. 4, App. B.  Exponential moving average of the weights, in place: a ← decay · a + (1 − decay) θ.

    The first step copies, as in the released code (tpu_utils.py:89-92): the random initial weights leave no trace.
    each: as in adam.
    """
    weight = 1.0 if step == 1 else 1 - decay

    def update(*leaves):
        for a, p in _blocks(*leaves):
            a += weight * (p - a)

    each(update, average, params)


def _blocks(*leaves):
    """The leaves cut alike into views that stay in the cache; whole where they are on a GPU or not in one piece of memory."""
    if any(backend.is_cuda(leaf) or not leaf.flags.c_contiguous for leaf in leaves):
        return [leaves]
    return zip(*([flat[i:i + BLOCK] for i in range(0, flat.size, BLOCK)] for flat in (leaf.reshape(-1) for leaf in leaves)),
               strict=True)
