"""Training: Algorithm 1."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minddpm import backend, data, memory, optim, tree
from minddpm.diffusion import q_sample
from minddpm.errors import UserError
from minddpm.layers import prepare
from minddpm.objective import OBJECTIVES, Example
from minddpm.unet import unet


@dataclass
class TrainingState:
    """What a run carries from step to step: the number of steps done, and four trees of the same shapes."""

    step: int
    params: dict
    m: dict                     # Adam's moments
    v: dict
    ema: dict                   # moving average of params: what is sampled from

    @classmethod
    def begin(cls, params):
        """The state before the first step."""
        return cls(0, params, tree.zeros_like(params), tree.zeros_like(params), tree.zeros_like(params))


class Batch(NamedTuple):
    """Everything random that one step sees: x0, eps (B,H,W,C); t (B,) the paper's t; seeds (B,) for dropout."""

    x0: np.ndarray
    t: np.ndarray
    eps: np.ndarray
    seeds: np.ndarray

    def part(self, images):
        """The same for a slice of the batch."""
        return Batch(*(field[images] for field in self))


class Metrics(NamedTuple):
    """One step's loss, global gradient norm before clipping, and learning rate."""

    loss: float
    grad_norm: float
    lr: float


def draw_batch(settings, dataset, step, device="cpu"):
    """Alg. 1, lines 2-4.  x_0 ~ q(x_0), t ~ Uniform({1, …, T}), ε ~ N(0, I), for training step 1, 2, ...

    A function of settings.seed and the step alone, so a resumed run sees what an uninterrupted one would have seen.
    """
    rng = np.random.default_rng([settings.seed, step, 1])         # [seed, epoch] shuffles the data
    B = settings.batch
    x0 = data.scale(dataset.train[data.batch_indices(len(dataset.train), B, step, settings.seed)], dataset.levels)
    t = rng.integers(1, settings.T, size=B, endpoint=True)
    eps = rng.standard_normal(x0.shape, dtype=np.float32)
    seeds = rng.integers(0, 2**63, size=B)
    if settings.flips:
        x0 = data.flip(x0, rng.random(B) < 0.5)
    return Batch(backend.to_device(x0, device), t, backend.to_device(eps, device), seeds)


def gradient(objective, cfg, s, params, batch, workers, sigma2="beta", levels=256, run=memory.keep):
    """Alg. 1, line 5.  The mean loss over the batch and its gradient, a tree like params.

        ∇_θ 1/B Σ_b ‖ε_b − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε_b, t_b)‖²         or another of the OBJECTIVES in its place

    sigma2, levels: what the bound L needs besides, see Example.  run: what the blocks keep, a policy of memory.py.
    The workers share params and take the batch in parts, whose gradients are added in a fixed order.
    """
    B = len(batch.x0)
    prepared = prepare(params, cfg.image_size, workers.map, training=True)

    @np.errstate(all="ignore")                              # train_step looks at the result instead
    def part_gradient(images):
        x0, t, eps, seeds = batch.part(images)
        x_t = q_sample(s, x0, t, eps)
        output, unet_back = unet(cfg, prepared, x_t, t, seeds, run)
        losses, loss_back = OBJECTIVES[objective](Example(s, x0, x_t, t, eps, sigma2, levels), output)
        _, dp = unet_back(loss_back(np.full_like(losses, 1 / B)))
        return losses.sum() / B, dp

    loss, total = 0, None
    for part_loss, dp in workers.map(part_gradient, workers.parts(B)):
        loss += part_loss
        if total is None:
            total = dp
        else:
            workers.each(_add_to, total, dp)
    return float(loss), total


def _add_to(total, g):
    total += g


def train_step(settings, cfg, s, state, batch, workers, levels=256):
    """Alg. 1.  One gradient step with Adam on `state`, in place -> Metrics.  levels: how many values a datum has.

    The gradient is scaled down to the norm settings.grad_clip where it is larger (released code, not in the paper).
    UserError: the loss or the gradient is not finite; the state is then as it was.
    """
    step = state.step + 1
    lr = optim.learning_rate(step, settings.lr, settings.warmup, settings.lr_final, settings.steps)
    run = memory.TRAINING[settings.memory]
    loss, grad = gradient(settings.objective, cfg, s, state.params, batch, workers, settings.sigma2, levels, run)
    norm = optim.global_norm(grad)
    if not np.isfinite([loss, norm]).all():
        raise UserError(f"step {step}: the loss is {loss:g} and the gradient's norm {norm:g}, at learning rate {lr:g}; "
                        "expected finite numbers (a smaller --lr or a longer --warmup often helps)")
    scale = min(1, settings.grad_clip / norm) if norm else 1
    optim.adam(state.params, state.m, state.v, grad, step, lr, scale=scale, each=workers.each)
    optim.ema(state.ema, state.params, step, settings.ema, workers.each)
    state.step = step
    return Metrics(loss, norm, lr)
