"""torch.randn on the CPU, in NumPy: the same Mersenne Twister, and torch's own way from its bits to normal numbers.

    u     = the lowest 24 of each word's 32 bits, · 2⁻²⁴, float32
    z     = √(−2 ln(1 − u_k)) cos(2π u_{k+8})   and   the same with sin,    k = 0..7 of every 16 numbers      (Box-Muller)

Only for sizes of at least 16 and multiples of it: torch computes others in another way.
"""

import math
from itertools import count

import numpy as np

from minddpm.sample import last, reverse_process


class TorchNormal:
    """The normal numbers of torch.Generator().manual_seed(seed), as long as nothing else is drawn from it.  seed: 0..2³²−1."""

    def __init__(self, seed):
        self._words = np.random.RandomState(seed)._bit_generator

    def __call__(self, *shape):
        """torch.randn(shape, generator=self), float32."""
        n = math.prod(shape)
        assert n >= 16 and n % 16 == 0, f"{n} numbers; torch computes fewer than 16, or no multiple of 16, in another way"
        u = (self._words.random_raw(n) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)
        a, b = u.reshape(-1, 2, 8).swapaxes(0, 1)
        radius, angle = np.sqrt(-2 * np.log(1 - a)), np.float32(2 * math.pi) * b
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape).astype(np.float32)


def pipeline_image(model, seed):
    """What diffusers' DDPMPipeline makes of a model and torch.Generator().manual_seed(seed): one image (H,W,C) in [0,1].

    Alg. 2 with noise drawn (1,C,H,W), x_T first.
    """
    size, channels, normal = model.config.image_size, model.config.in_channels, TorchNormal(seed)
    noise = (normal(1, channels, size, size).transpose(0, 2, 3, 1) for _ in count())
    x_0 = last(reverse_process(model.schedule, model.output, noise, **model.how))
    return np.clip(x_0[0] / 2 + 0.5, 0, 1)
