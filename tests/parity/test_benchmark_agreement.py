"""vs_torch.py checks that both sides compute the same: it passes where they do and fails at each planted fault."""

import math

import oracle  # first: it says why these tests are skipped where there is no torch
import pytest
import torch_unet
import vs_torch

from minddpm.fast import Workers
from minddpm.reverse import p_theta

PRESET, BATCH, torch = "small", 4, oracle.torch
Adam, clip_grad_norm, lerp = torch.optim.Adam, torch.nn.utils.clip_grad_norm_, torch._foreach_lerp_
attention = torch_unet.attention


class Uncorrected(Adam):
    """Adam without its correction of the moments, which at a late step is 1."""

    def __init__(self, leaves, **how):
        super().__init__(leaves, **how)
        self.late = {leaf: {"step": torch.tensor(1e6), "exp_avg": torch.zeros_like(leaf), "exp_avg_sq": torch.zeros_like(leaf)}
                     for leaf in leaves}

    def step(self):
        if not self.state:
            self.state.update(self.late)
        super().step()


def adam(**other):
    return "torch.optim.Adam", lambda leaves, lr, fused: Adam(leaves, **{"lr": lr, "fused": fused} | other)


def average(weight):
    return "torch._foreach_lerp_", lambda averages, leaves, right: lerp(averages, leaves, weight(right))


M, V, WAY, AVERAGE = "the norm of Adam's m", "the norm of Adam's v", "the weights' way", "their average's way"
TRAINING = {                # the fault planted in PyTorch's side, and the number that shows it
    "no clipping":              ("torch.nn.utils.clip_grad_norm_", lambda leaves, most: clip_grad_norm(leaves, math.inf), M),
    "clipping to another norm": ("torch.nn.utils.clip_grad_norm_", lambda leaves, most: clip_grad_norm(leaves, 1.001 * most), M),
    "no average":               ("torch._foreach_lerp_", lambda *args: None, AVERAGE),
    "an average that does not copy first": (*average(lambda right: 1 - vs_torch.EMA), AVERAGE),
    "an average of another decay": (*average(lambda right: 2 * right if right < 1 else right), AVERAGE),
    "a learning rate 0.1 % off": (*adam(lr=1.001 * vs_torch.LR), WAY),
    "another eps":              (*adam(eps=1e-7), WAY),
    "another beta1":            (*adam(betas=(0.899, 0.999)), M),
    "another beta2":            (*adam(betas=(0.9, 0.9991)), V),
    "no bias correction":       ("torch.optim.Adam", Uncorrected, WAY),
    "attention 10 % off":       ("torch_unet.attention", lambda cfg, p, name, x: 1.1 * attention(cfg, p, name, x) - 0.1 * x,
                                 "the gradient's norm"),
    "half a gradient":          ("torch.Tensor.backward", lambda loss: torch.autograd.backward(loss / 2), "the gradient's norm"),
}
SAMPLING = {                # in either side
    "no attention":             ("torch_unet.attention", lambda cfg, p, name, x: x, "ε_θ"),
    "no clipping of x̂_0":       ("torch.Tensor.clamp", lambda a, low, high: a, "x_{t−1}"),
    "the other variance":       ("minddpm.reverse.p_theta", lambda *args: p_theta(*args, sigma2="beta_tilde"), "x_{t−1}"),
    "no noise":                 ("minddpm.reverse.p_theta", lambda *args: p_theta(*args)._replace(var=0.0), "x_{t−1}"),
}


def found(kind):
    """The largest difference over the steps that are compared, by what it is of."""
    with Workers(2) as workers:
        ours = computed(vs_torch.minddpm_side(PRESET, kind, workers))
    theirs = computed(vs_torch.torch_side(PRESET, kind, 1, channels_last=False, compiled=False))
    steps = [vs_torch.differences(*pair) for pair in zip(ours, theirs, strict=True)]
    return {what: max(step[what] for step in steps) for what in steps[0]}


def computed(side):
    return [side.numbers(side.step(vs_torch.draw(PRESET, BATCH, number))) for number in range(vs_torch.COMPARED)]


@pytest.mark.parametrize("kind", ["train", "sample"])
def test_the_sides_agree_by_ten_times_more_than_is_asked(kind):
    agreement = found(kind)
    print("\n" + ", ".join(f"{what} {difference:.1e}" for what, difference in agreement.items()))
    assert max(agreement.values()) < vs_torch.AGREE / 10


@pytest.mark.parametrize("kind, fault", [*(("train", fault) for fault in TRAINING), *(("sample", fault) for fault in SAMPLING)])
def test_a_fault_of_one_side_is_seen(monkeypatch, kind, fault):
    place, planted, what = (TRAINING if kind == "train" else SAMPLING)[fault]
    monkeypatch.setattr(place, planted)
    differences = found(kind)
    print(f"\n{fault}: {what} {differences[what]:.1e}")
    assert differences[what] > 5 * vs_torch.AGREE
