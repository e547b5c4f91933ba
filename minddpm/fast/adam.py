"""Adam and the moving average on a CPU in few passes over memory, a block of numbers at a time."""

import math

import numpy as np

BLOCK = 2**16               # numbers that are worked on at a time, so that they stay in the cache between the passes


@np.errstate(over="ignore", invalid="ignore")                         # a diverging network: Metrics.checked reports it
def adam_ema(*leaf, step, lr, scale, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """App. B.  optim.adam with the gradient `scale` g, then optim.ema, in place.  leaf: the arrays p, m, v, g and average.

    lr m̂ / (√v̂ + ε) is lr_step m / (√v + ε_step), two passes less, with

        lr_step = lr √(1 − β₂^step) / (1 − β₁^step)        ε_step = ε √(1 − β₂^step)
    """
    root, weight = math.sqrt(1 - beta2**step), 1.0 if step == 1 else 1 - decay
    lr_step, eps_step = lr * root / (1 - beta1**step), eps * root
    for p, m, v, g, average in _blocks(*leaf):
        work = (1 - beta1) * scale * g
        m *= beta1
        m += work
        work *= math.sqrt(1 - beta2) / (1 - beta1)
        work *= work                                                    # (1 − β₂) (scale g)²
        v *= beta2
        v += work
        np.sqrt(v, out=work)
        work += eps_step
        np.divide(m, work, out=work)
        work *= lr_step
        p -= work
        average += weight * (p - average)


def _blocks(*leaves):
    """The arrays cut alike into views of at most BLOCK numbers; whole where one does not lie in one piece of memory."""
    size = leaves[0].size
    if size <= BLOCK or not all(leaf.flags.c_contiguous for leaf in leaves):
        return [leaves]
    flat = [leaf.reshape(-1) for leaf in leaves]
    return [[leaf[i:i + BLOCK] for leaf in flat] for i in range(0, size, BLOCK)]
