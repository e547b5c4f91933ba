"""A trained model: network, weights, schedule and sampler together."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minddpm import sample
from minddpm.diffusion import Schedule
from minddpm.unet import UNetConfig, layers, unet
from minddpm.unet.recompute import inference

BATCH = 64                  # images that Model.sample draws at a time


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Sec. 2, 3.2.  What Alg. 2 needs: the network, the schedule, and how p_θ is made from the network's output.

    params is the tree of weights: a training run's folder holds their moving average (EMA).  sigma2 (the variance σ_t²),
    clip (whether the sampler clips x̂_0) and predicts (what the network's output is) are arguments of reverse.p_theta.
    ops: the layers that compute the network.
    """

    config: UNetConfig
    params: dict
    schedule: Schedule
    sigma2: str = "beta"
    clip: bool = True
    predicts: str = "eps"
    ops: Any = layers

    def __repr__(self):
        return f"Model({self.config}, T={self.schedule.T}, sigma2={self.sigma2!r}, clip={self.clip}, predicts={self.predicts!r})"

    def output(self, x_t, t):
        """App. B.  The network's output at x_t (B,H,W,C) of any float dtype and t, the paper's t, an int or (B,); like x_t.

        It is ε_θ, or μ_θ or x̂_0 by `predicts`; where the variance is learned, 2C channels, the second half its logarithm.
        """
        dtype = self.params["conv_in"]["weight"].dtype
        y, _ = unet(self.config, self.params, x_t.astype(dtype, copy=False), t, ops=self.ops, policy=inference)
        return y.astype(x_t.dtype, copy=False)

    def eps_theta(self, x_t, t):
        """Eq. (11), (14).  ε_θ(x_t, t) -> ε like x_t (B,H,W,C).  ValueError: a model that predicts something else."""
        if self.predicts != "eps":
            raise ValueError(f"this model predicts {self.predicts}, not eps; expected Model.output, which p_theta takes")
        return self.output(x_t, t)[..., :x_t.shape[-1]]

    @property
    def how(self):
        """The keyword arguments of p_theta that belong to this model's output."""
        return dict(sigma2=self.sigma2, clip=self.clip, predicts=self.predicts)

    def sample(self, n, seed, first=0):
        """Alg. 2.  n samples x_0 (n,H,W,C) in [−1, 1]; sample k of a seed is the same whatever n.  first: the k of the first."""
        size, channels, like = self.config.image_size, self.config.in_channels, self.params["conv_in"]["bias"]
        return np.concatenate([
            sample.sample(self.schedule, self.output, (min(BATCH, first + n - k), size, size, channels), seed, **self.how,
                          first=k, like=like)
            for k in range(first, first + n, BATCH)])
