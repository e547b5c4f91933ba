"""Training: Algorithm 1."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minddpm import optim, tree
from minddpm.diffusion import q_sample
from minddpm.errors import UserError
from minddpm.objective import OBJECTIVES, Example
from minddpm.random import rng
from minddpm.unet import layers, unet
from minddpm.unet.recompute import store


@dataclass
class TrainingState:
    """The state of a training run: the number of steps done, and four trees of the same shapes."""

    step: int
    params: dict
    m: dict                     # Adam's moments
    v: dict
    ema: dict                   # moving average of params: the weights that are sampled from

    @classmethod
    def begin(cls, params):
        """The state before the first step."""
        return cls(0, params, tree.zeros_like(params), tree.zeros_like(params), tree.zeros_like(params))


class Batch(NamedTuple):
    """The random numbers of one step: x0, eps (B,H,W,C); t (B,), the paper's t; seeds (B,) of the dropout masks."""

    x0: np.ndarray
    t: np.ndarray
    eps: np.ndarray
    seeds: np.ndarray


class Metrics(NamedTuple):
    """One step's number, mean loss, global gradient norm before clipping, and learning rate.

    Loss and norm are arrays (), which may not be computed yet where they are CuPy's: float() waits for them.
    """

    step: int
    loss: Any
    grad_norm: Any
    lr: float

    def checked(self):
        """The same with floats.  UserError: the loss or the gradient is not finite, and so the weights are not either."""
        loss, norm = float(self.loss), float(self.grad_norm)
        if not np.isfinite([loss, norm]).all():
            raise UserError(f"step {self.step}: the loss is {loss:g} and the gradient's norm {norm:g}, at learning rate "
                            f"{self.lr:g}; expected finite numbers (a smaller --lr or a longer --warmup often helps)")
        return self._replace(loss=loss, grad_norm=norm)


def gradient(objective, cfg, s, params, batch, sigma2="beta", levels=256, batch_size=None, ops=layers, policy=store):
    """Alg. 1, line 5.  The mean loss over the batch, an array (), and its gradient, a tree like params.

        ∇_θ 1/(B D) Σ_b ‖ε_b − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε_b, t_b)‖²

    objective: a name in OBJECTIVES, "simple" for this loss.  sigma2, levels: see Example.  batch_size: B, where the batch is a
    part of a larger one.  ops, policy: see unet.
    """
    x_t = q_sample(s, batch.x0, batch.t, batch.eps)
    output, unet_back = unet(cfg, params, x_t, batch.t, batch.seeds, ops, policy)
    loss, loss_back = OBJECTIVES[objective](Example(s, batch.x0, x_t, batch.t, batch.eps, sigma2, levels), output)
    dloss = np.full_like(loss, 1 / (batch_size or len(loss)))
    doutput = loss_back(dloss)
    _, dparams = unet_back(doutput)
    return loss @ dloss, dparams


def update(settings, state, gradient):
    """Alg. 1, line 5.  A step of Adam and of the moving average, in place on `state` -> (the gradient's norm, learning rate).

    A gradient of a norm above settings.grad_clip is scaled down to it: in the released code (utils.py:151-178), not in the paper.
    """
    step, norm = state.step + 1, optim.global_norm(gradient)
    lr = optim.learning_rate(step, settings.lr, settings.warmup, settings.lr_final, settings.steps)
    scale = settings.grad_clip / np.maximum(norm, settings.grad_clip)
    optim.adam(state.params, state.m, state.v, tree.map(lambda g: scale * g, gradient), step, lr)
    optim.ema(state.ema, state.params, step, settings.ema)
    state.step = step
    return norm, lr


def train(settings, cfg, s, state, dataset, gradient=gradient, update=update):
    """Alg. 1.  Training, in place on `state`, until settings.steps; yields the Metrics of each step.

        1: repeat
        2:    x_0 ~ q(x_0)
        3:    t ~ Uniform({1, …, T})
        4:    ε ~ N(0, I)
        5:    take gradient descent step on  ∇_θ ‖ε − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t)‖²
        6: until converged

    dataset.batch(B, step, seed, flips) -> x0 (B,H,W,C) in [−1, 1]; flips: whether images may be mirrored (App. B).  All draws are
    functions of settings.seed and the step, so that a resumed run is the uninterrupted one.  settings: seed, batch (B), flips,
    objective, sigma2, steps, lr, lr_final, warmup, grad_clip, ema.  gradient, update: the two halves of line 5.
    """
    while state.step < settings.steps:                                                      # 1: repeat
        step   = state.step + 1
        random = rng("training step", settings.seed, step)
        x0     = dataset.batch(settings.batch, step, settings.seed, settings.flips)         # 2: x_0 ~ q(x_0)
        t      = random.integers(1, s.T, size=len(x0), endpoint=True)                       # 3: t ~ Uniform({1, …, T})
        eps    = random.standard_normal(x0.shape, dtype=np.float32)                         # 4: ε ~ N(0, I)
        seeds  = random.integers(2**63, size=len(x0))                                       #    and for dropout (App. B)
        loss, grad = gradient(settings.objective, cfg, s, state.params, Batch(x0, t, eps, seeds),
                              settings.sigma2, dataset.levels)                              # 5: take gradient descent step on
        norm, lr   = update(settings, state, grad)                                          #    ∇_θ ‖ε − ε_θ(x_t, t)‖²
        del grad                                                                            #    its memory is the next step's
        yield Metrics(step, loss, norm, lr)                                                 # 6: until converged
