"""A trained model: network, weights, schedule and sampler together."""

from dataclasses import dataclass
from functools import cached_property

from minddpm.diffusion import Schedule
from minddpm.fast.ops import prepare
from minddpm.unet import UNetConfig, unet
from minddpm.unet.recompute import discard


@dataclass(frozen=True, eq=False)
class Model:
    """Sec. 2, 3.2.  What Alg. 2 needs: the network, the schedule, and how p_θ is made from the network's output.

    params is the tree of weights: a training run's folder holds their moving average (EMA).  sigma2 (the variance σ_t²),
    clip (whether the sampler clips x̂_0) and predicts (what the network's output is) are arguments of reverse.p_theta.
    """

    config: UNetConfig
    params: dict
    schedule: Schedule
    sigma2: str = "beta"
    clip: bool = True
    predicts: str = "eps"

    def eps_theta(self, x_t, t):
        """Eq. (11), (14).  ε_θ(x_t, t).  x_t (B,H,W,C) of any float dtype, t: the paper's t, an int or (B,) -> ε like x_t.

        It is the network's output, whatever that is: 2C channels where the variance is learned, μ or x̂_0 by `predicts`.
        """
        dtype = self.params["conv_in"]["weight"].dtype
        eps, _ = unet(self.config, self._prepared, x_t.astype(dtype, copy=False), t, run=discard)
        return eps.astype(x_t.dtype, copy=False)

    @cached_property
    def _prepared(self):
        return prepare(self.params, self.config.image_size)
