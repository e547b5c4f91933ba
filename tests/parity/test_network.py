"""The U-Net against diffusers' UNet2DModel at random weights: forward pass, and every gradient against torch's autograd."""

import numpy as np
import pytest
from oracle import (
    check_names,
    cifar10,
    config_of,
    float64_time_embedding,
    image256,
    make,
    nchw,
    nhwc,
    randomize,
    relative,
    to_ours,
    torch,
)

from minddpm import tree
from minddpm.fast import ops_for
from minddpm.unet import layers, unet

T_SEEN = [1, 2, 500, 1000]          # the paper's t

NETWORKS = {
    "1 layer, groups 4":                   lambda: make((8, 16), "-A", "A-", 1, 4, 1, 8),
    "3 layers, groups 8":                  lambda: make((16, 32), "-A", "A-", 3, 8, 3, 8),
    "2 layers, groups 32":                 lambda: make((32, 64, 64), "-A-", "-A-", 2, 32, 3, 16),
    "groups 16, attention at the top":     lambda: make((32, 32), "A-", "-A", 1, 16, 1, 8),
    "attention everywhere":                lambda: make((8, 16, 16), "AAA", "AAA", 2, 4, 3, 8),
    "attention at the bottom's block only":lambda: make((8, 16), "--", "--", 2, 4, 3, 8),
    "attention at both ends":              lambda: make((8, 16, 24), "A-A", "A-A", 1, 8, 1, 12),
    "attention on the way down only":      lambda: make((8, 16), "A-", "--", 1, 4, 3, 8),
    "attention on the way up only":        lambda: make((8, 16, 16), "---", "-AA", 1, 4, 1, 8),
    "one level":                           lambda: make((16,), "A", "A", 2, 4, 3, 6),
    "narrowing widths, eps 1e-5":          lambda: make((32, 16, 8), "-A-", "-A-", 2, 8, 3, 16, norm_eps=1e-5),
    "learned variance":                    lambda: make((8, 16), "-A", "A-", 1, 4, 3, 8, outputs=6),
}
LARGE = {"CIFAR-10 at full size": (cifar10, 32), "256x256 at 64x64": (image256, 64)}
networks = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
large = pytest.mark.parametrize("build, size", LARGE.values(), ids=LARGE)


def compare_forward(theirs, size, ts, dtype, fast=False):
    """Relative difference of the outputs, both in dtype, and of theirs to itself with the timestep embedded in float64."""
    theirs = theirs.to(getattr(torch, dtype))
    cfg, params = config_of(theirs), to_ours(theirs.state_dict())
    check_names(params, cfg)
    t = np.array(ts)
    x = np.random.default_rng(1).standard_normal((len(t), size, size, cfg.in_channels)).astype(dtype)
    with torch.no_grad():
        expected = nhwc(theirs(nchw(x), torch.from_numpy(t - 1)).sample)
        exact = nhwc(float64_time_embedding(theirs)(nchw(x), torch.from_numpy(t - 1)).sample)
    eps, _ = unet(cfg, params, x, t, ops=ops_for(params, size) if fast else layers)
    assert eps.dtype == expected.dtype == np.dtype(dtype)
    return relative(eps, expected), relative(exact, expected)


def check_float64(error, floor, t):
    """Within 1e-6, or exactly as far away as their own float32 embedding of the timestep moves their own output."""
    print(f"\nt = {t}: relative error {error:.1e}, of which their float32 time embedding {floor:.1e}", end="")
    assert error < 1e-6 or floor > 1e-6, f"relative error {error:.2e} at t = {t}"
    assert abs(error - floor) < 1e-9, f"relative error {error:.2e} at t = {t}; their own embedding explains {floor:.2e}"


def compare_gradients(theirs, size, ts, dtype="float64"):
    """Both networks' gradients of ⟨deps, ε_θ⟩ -> {name: relative difference}, {name: absolute} where theirs is zero."""
    theirs = theirs.to(getattr(torch, dtype))
    cfg, params = config_of(theirs), to_ours(theirs.state_dict())
    rng, t = np.random.default_rng(2), np.array(ts)
    x = rng.standard_normal((len(t), size, size, cfg.in_channels)).astype(dtype)
    x_theirs = nchw(x).requires_grad_()
    out = theirs(x_theirs, torch.from_numpy(t - 1)).sample
    deps = rng.standard_normal((len(t), size, size, cfg.out_channels)).astype(dtype)
    out.backward(nchw(deps))
    eps, back = unet(cfg, params, x, t)
    dx, dp = back(deps)
    expected = tree.flatten(to_ours({name: p.grad for name, p in theirs.named_parameters()}))
    ours = tree.flatten(dp)
    assert ours.keys() == expected.keys()
    scale = np.sqrt(sum((a**2).sum() for a in expected.values()))
    zero = {name for name in ours if np.linalg.norm(expected[name]) < 1e-9 * scale}     # a shift that softmax or norm undoes
    errors = {name: relative(ours[name], expected[name]) for name in ours if name not in zero}
    errors["x"] = relative(dx, nhwc(x_theirs.grad))
    return errors, {name: float(np.abs(ours[name] - expected[name]).max() / scale) for name in zero}


@networks
@pytest.mark.parametrize("t", T_SEEN)
def test_forward_float64(build, t):
    theirs = randomize(build(), 0)
    check_float64(*compare_forward(theirs, theirs.config.sample_size, [t, t], "float64"), t)


@networks
def test_forward_float64_to_the_last_digits_with_a_float64_time_embedding(build):
    theirs = float64_time_embedding(randomize(build(), 1))
    error, _ = compare_forward(theirs, theirs.config.sample_size, T_SEEN, "float64")
    assert error < 1e-13, f"relative error {error:.2e}"


@networks
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_forward_float32(build, fast):
    theirs = randomize(build(), 2)
    error, _ = compare_forward(theirs, theirs.config.sample_size, T_SEEN, "float32", fast)
    print(f"\nrelative error {error:.2e}", end="")
    assert error < 1e-5, f"relative error {error:.2e}"


embeddings = pytest.mark.parametrize("embed, tolerance", [(lambda unet: unet, 1e-5), (float64_time_embedding, 1e-12)],
                                     ids=["their time embedding", "float64 time embedding"])


@networks
@embeddings
def test_every_gradient(build, embed, tolerance):
    theirs = embed(randomize(build(), 3))
    check_gradients(*compare_gradients(theirs, theirs.config.sample_size, T_SEEN), tolerance)


@pytest.mark.slow
@large
def test_large_forward_float64(build, size):
    for t in T_SEEN:
        check_float64(*compare_forward(randomize(build(), 4), size, [t], "float64"), t)


@pytest.mark.slow
@large
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_large_forward_float32(build, size, fast):
    error, _ = compare_forward(randomize(build(), 5), size, [1, 1000], "float32", fast)
    print(f"\nrelative error {error:.2e}", end="")
    assert error < 1e-5, f"relative error {error:.2e}"


@pytest.mark.slow
@large
@embeddings
def test_large_every_gradient(build, size, embed, tolerance):
    check_gradients(*compare_gradients(embed(randomize(build(), 6)), size, [1, 500]), tolerance)


def check_gradients(errors, zeros, tolerance):
    worst = max(errors, key=errors.get)
    print(f"\n{len(errors)} gradients, worst {errors[worst]:.1e} ({worst}); {len(zeros)} zero to "
          f"{max(zeros.values(), default=0):.0e} of the gradient's norm", end="")
    assert errors[worst] < tolerance, f"{worst}: relative error {errors[worst]:.2e}"
    assert all(error < 1e-12 for error in zeros.values()), zeros
    # shifts of its scores that leave softmax as it is, or of the channel in a norm of one channel a group
    assert all(name.endswith((".bias", "time_emb_proj.weight")) for name in zeros), zeros
