"""Alg. 1, line 5, by several threads, or on a GPU: train.gradient and train.update with the same results, faster."""

from functools import partial
from operator import iadd

import numpy as np

from minddpm import optim, train, tree
from minddpm.fast import adam, adam_cuda, cuda
from minddpm.fast.device import is_cuda, to_device
from minddpm.fast.ops import ops_for, plain_only
from minddpm.unet.recompute import store


def gradient_by(workers, policy=store):
    """train.gradient, computed by workers (see workers.py), which share the parameters and take the batch in parts.

    The parts' gradients are added in a fixed order, so the result depends on the number of threads alone.  policy: see unet.
    """
    def gradient(objective, cfg, s, params, batch, sigma2="beta", levels=256):
        if is_cuda(params["conv_in"]["weight"]):
            x0, eps, seeds = (to_device(a, "cuda") for a in (batch.x0, batch.eps, batch.seeds.astype(np.uint64)))
            batch = train.Batch(x0, batch.t, eps, seeds)
        ops, B = ops_for(params, cfg.image_size, training=True, map=workers.map), len(batch.x0)

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")      # a diverging network: Metrics.checked reports it
        def part_gradient(images):
            part = train.Batch(*(a[images] for a in batch))
            return train.gradient(objective, cfg, s, params, part, sigma2, levels, B, ops, policy)

        parts = workers.map(part_gradient, workers.parts(B))
        loss, total = next(parts)
        for part_loss, dparams in parts:
            loss = loss + part_loss
            workers.for_each_leaf(iadd, total, dparams)
        return loss, total

    return gradient


def update_by(workers):
    """train.update, with the leaves of the trees shared out among the workers, or by kernels on a GPU."""
    def update(settings, state, gradient):
        if plain_only():
            return train.update(settings, state, gradient)
        kernels, step = cuda.fits(*tree.leaves(gradient)), state.step + 1
        norm = (adam_cuda if kernels else optim).global_norm(gradient)
        lr = optim.learning_rate(step, settings.lr, settings.warmup, settings.lr_final, settings.steps)
        scale = settings.grad_clip / np.maximum(norm, settings.grad_clip)
        if kernels:
            adam_cuda.adam_ema(state, gradient, step, lr, scale, settings.ema)
        else:
            update_leaf = partial(adam.adam_ema, step=step, lr=lr, scale=float(scale), decay=settings.ema)
            workers.for_each_leaf(update_leaf, state.params, state.m, state.v, gradient, state.ema)
        state.step = step
        return norm, lr

    return update
