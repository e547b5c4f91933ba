"""Training: Algorithm 1."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minddpm import data, optim, tree
from minddpm import device as backend
from minddpm.diffusion import q_sample
from minddpm.errors import UserError
from minddpm.fast import adam_cuda as fused
from minddpm.fast.ops import prepare
from minddpm.objective import OBJECTIVES, Example
from minddpm.unet import unet
from minddpm.unet.recompute import TRAINING, keep


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
    """Everything random that one step sees: x0, eps (B,H,W,C); t (B,) the paper's t; seeds (B,) for dropout; on one device."""

    x0: np.ndarray
    t: np.ndarray
    eps: np.ndarray
    seeds: np.ndarray

    def part(self, images):
        """The same for a slice of the batch."""
        return Batch(*(field[images] for field in self))


class Metrics(NamedTuple):
    """One step's loss, global gradient norm before clipping, and learning rate.

    On a device the first two are arrays (), which may not be computed yet: `read` waits for them.
    """

    loss: Any
    grad_norm: Any
    lr: float

    def read(self, step):
        """The same as floats.  step: the step that they are of.  UserError: the loss or the gradient is not finite."""
        loss, norm = float(self.loss), float(self.grad_norm)
        if not np.isfinite([loss, norm]).all():
            raise UserError(f"step {step}: the loss is {loss:g} and the gradient's norm {norm:g}, at learning rate {self.lr:g}; "
                            "expected finite numbers (a smaller --lr or a longer --warmup often helps)")
        return Metrics(loss, norm, self.lr)


class Draw(NamedTuple):
    """What Alg. 1 draws for a step, on the host: which images, their t and ε, seeds for dropout, and which are mirrored."""

    images: np.ndarray
    t: np.ndarray
    eps: np.ndarray
    seeds: np.ndarray
    flipped: np.ndarray


def draw(settings, dataset, step):
    """Alg. 1, lines 2-4.  x_0 ~ q(x_0), t ~ Uniform({1, …, T}), ε ~ N(0, I), for training step 1, 2, ... -> Draw.

    A function of settings.seed and the step alone, so a resumed run sees what an uninterrupted one would have seen.
    """
    rng = np.random.default_rng([settings.seed, step, 1])         # [seed, epoch] shuffles the data
    B = settings.batch
    images = data.batch_indices(len(dataset.train), B, step, settings.seed)
    t = rng.integers(1, settings.T, size=B, endpoint=True)
    eps = rng.standard_normal((B, *dataset.train.shape[1:]), dtype=np.float32)
    seeds = rng.integers(0, 2**63, size=B)
    return Draw(images, t, eps, seeds, rng.random(B) < 0.5 if settings.flips else np.zeros(B, bool))


def place(drawn, settings, dataset, device="cpu"):
    """A Draw -> its Batch on the device.  Images that are there already are taken, scaled and mirrored there."""
    images, t, eps, seeds, flipped = (backend.to_device(a, device) for a in drawn)
    if backend.is_cuda(dataset.train) or device == "cpu":
        x0 = data.scale(dataset.train[images], dataset.levels)
    else:
        x0 = data.scale(backend.to_device(dataset.train[drawn.images], device), dataset.levels)
    return Batch(data.flip(x0, flipped) if settings.flips else x0, t, eps, seeds)


def draw_batch(settings, dataset, step, device="cpu"):
    """Alg. 1, lines 2-4.  All that training step 1, 2, … sees, on the device."""
    return place(draw(settings, dataset, step), settings, dataset, device)


def gradient(objective, cfg, s, params, batch, workers, sigma2="beta", levels=256, run=keep):
    """Alg. 1, line 5.  The mean loss over the batch, on a device an array (), and its gradient, a tree like params.

        ∇_θ 1/B Σ_b ‖ε_b − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε_b, t_b)‖²         or another of the OBJECTIVES in its place

    sigma2, levels: what the bound L needs besides, see Example.  run: a policy of memory.py, which changes no number.
    The workers share params and take the batch in parts, whose gradients are added in a fixed order.
    """
    B, s = len(batch.x0), s.on(batch.t)
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
    return loss if backend.is_cuda(loss) else float(loss), total


def _add_to(total, g):
    total += g


def told_gradient(settings, cfg, s, params, batch, workers, levels):
    """Alg. 1, line 5.  `gradient` with the loss, the σ_t² and the memory policy of the settings."""
    return gradient(settings.objective, cfg, s, params, batch, workers, settings.sigma2, levels, TRAINING[settings.memory])


def train_step(settings, cfg, s, state, batch, workers, levels=256):
    """Alg. 1.  One gradient step with Adam on `state`, in place -> Metrics.  levels: how many values a datum has.

    The gradient is scaled down to the norm settings.grad_clip where it is larger (released code, not in the paper).
    UserError: the loss or the gradient is not finite; the state is then as it was.  A device is not waited for: there the
    same is said by `Metrics.read`, and what came of it has to be thrown away.
    """
    step = state.step + 1
    lr = optim.learning_rate(step, settings.lr, settings.warmup, settings.lr_final, settings.steps)
    loss, grad = told_gradient(settings, cfg, s, state.params, batch, workers, levels)
    kernels = fused.fits(grad)
    norm = (fused if kernels else optim).global_norm(grad)
    metrics = Metrics(loss, norm, lr)
    if not backend.is_cuda(norm):
        metrics = metrics.read(step)
    largest = np.maximum if backend.is_cuda(norm) else max                  # max would wait for the device
    scale = settings.grad_clip / largest(norm, settings.grad_clip)
    if kernels:
        fused.adam_ema(state, grad, step, lr, scale, settings.ema)
    else:
        def update(p, m, v, g, average):
            optim.adam(p, m, v, g, step, lr, scale=scale)
            optim.ema(average, p, step, settings.ema)

        workers.each(update, state.params, state.m, state.v, grad, state.ema)
    state.step = step
    return metrics
