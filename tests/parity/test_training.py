"""Fifty steps of Algorithm 1 against torch: autograd, torch.optim.Adam, clip_grad_norm_, from the same weights and batches."""

from types import SimpleNamespace

import numpy as np
import pytest
from oracle import config_of, make, nchw, randomize, relative, to_ours, torch

from minddpm import train, tree
from minddpm.diffusion import Schedule, q_sample
from minddpm.fast import Workers
from minddpm.fast.training import gradient_by, update_by
from minddpm.train import Batch, TrainingState

STEPS, B, SIZE, LR = 50, 8, 8, 1e-3


def batches(dtype, channels):
    """Smooth random images, as training images are, with their t and noise."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        x0 = np.clip(rng.standard_normal((B, 1, 1, channels)) / 2 + rng.standard_normal((B, SIZE, SIZE, channels)) / 10, -1, 1)
        t, eps = rng.integers(1, 1000, size=B, endpoint=True), rng.standard_normal(x0.shape)
        yield Batch(x0.astype(dtype), t, eps.astype(dtype), np.zeros(B, np.int64))


@pytest.mark.parametrize("dtype, threads", [("float32", 1), ("float32", 2), ("float64", 1), ("float32", None), ("float64", None)])
@pytest.mark.parametrize("clip", [1.0, 1e9], ids=["clipped", "not clipped"])
def test_fifty_adam_steps(dtype, threads, clip):
    """By the fast forms with so many threads, and by the plain ones."""
    theirs = randomize(make((16, 32), "-A", "A-", 1, 8, 3, SIZE), 0).to(getattr(torch, dtype))
    cfg, s = config_of(theirs), Schedule.linear()
    state = TrainingState.begin(to_ours(theirs.state_dict()))
    settings = SimpleNamespace(steps=STEPS, lr=LR, lr_final=None, warmup=0, grad_clip=clip, ema=0.9)
    adam = torch.optim.Adam(theirs.parameters(), lr=LR)
    losses = []
    with Workers(threads or 1, part=B // (threads or 1)) as workers:
        gradient, update = (gradient_by(workers), update_by(workers)) if threads else (train.gradient, train.update)
        for batch in batches(dtype, cfg.in_channels):
            x_t = nchw(q_sample(s, batch.x0, batch.t, batch.eps))
            loss = torch.nn.functional.mse_loss(theirs(x_t, torch.from_numpy(batch.t - 1)).sample, nchw(batch.eps))
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
            adam.step()
            our_loss, our_gradient = gradient("simple", cfg, s, state.params, batch)
            our_norm, _ = update(settings, state, our_gradient)
            losses.append((our_loss, loss.item()))
            assert our_norm == pytest.approx(norm.item(), rel=1e-4)
    check(losses, state.params, to_ours(theirs.state_dict()), {"float32": 5e-6, "float64": 1e-6}[dtype])


def check(losses, params, expected, tolerance):
    ours, theirs = np.array(losses).T
    worst = np.abs(ours / theirs - 1).max()
    both = [np.concatenate([a.ravel() for a in tree.leaves(p)]) for p in (params, expected)]
    # to_k's bias does not change softmax: its gradient is rounding alone, of which Adam makes steps of full length
    each = {name: relative(a, tree.flatten(expected)[name]) for name, a in tree.flatten(params).items()
            if not name.endswith("to_k.bias")}
    print(f"\nloss {theirs[0]:.4f} -> {theirs[-1]:.4f}; largest relative difference of a loss {worst:.1e}, of all weights "
          f"{relative(*both):.1e}, of one tensor {max(each.values()):.1e} ({max(each, key=each.get)})", end="")
    assert theirs[-1] < theirs[0]
    assert worst < tolerance, f"losses differ by {worst:.1e}"
    assert relative(*both) < 1e-4
    assert max(each.values()) < 1e-4, f"{max(each, key=each.get)} differs by {max(each.values()):.1e}"
