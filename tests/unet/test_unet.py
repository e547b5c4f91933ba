"""unet.py: the whole network's gradient, its twin, the paper's parameters by number, name, shape and initial value."""

import math
import re
from functools import cache

import numpy as np
import pytest
import twins
from gradcheck import Case, check_gradient, projections, random_parameters, read_only
from test_blocks import SOFTMAX

from minddpm import tree
from minddpm.objective import l_simple
from minddpm.unet import UNetConfig, init, layers, parameters, unet
from minddpm.unet.recompute import inference, recompute, store

UNET = "minddpm.unet.network"
SMALL = UNetConfig(4, 2, widths=(4, 6), blocks=1, attention=(1,), groups=2, dropout=0.3)
LEARNED = UNetConfig(2, 1, widths=(4,), blocks=2, attention=(0,), groups=2, learned_sigma=True)
UP_ONLY = UNetConfig(4, 1, widths=(4, 4), blocks=1, attention=(), attention_up=(0,), groups=2)
DEEP = UNetConfig(8, 1, widths=(4, 6, 4), blocks=2, attention=(0, 2), groups=2, dropout=0.3)
SEEDS = [11, 2**64 - 1]
T = np.array([1, 700])


def draw(*shape, seed=0):
    return read_only(np.random.default_rng([seed, *shape]).standard_normal(shape))


def shapes(cfg):
    return {name: draw.shape for name, draw in tree.flatten(parameters(cfg)).items()}


def weights(cfg):
    return random_parameters(tree.unflatten(shapes(cfg)), seed=9)


def case(cfg, seeds=None, policy=store):
    p = weights(cfg)
    zero = {f"p.{name}": SOFTMAX for name in shapes(cfg) if name.endswith("to_k.bias")}
    return Case(UNET, lambda m: lambda p, x: m.unet(cfg, p, x, T, seeds, policy=policy),
                (p, draw(2, cfg.image_size, cfg.image_size, cfg.in_channels)), zero)


def loss_case(cfg):
    """Alg. 1, line 5: the loss of each image as a function of the network's parameters and input."""
    net = case(cfg, SEEDS)
    eps = draw(2, cfg.image_size, cfg.image_size, cfg.out_channels, seed=1)

    def bind(m):
        def loss(p, x):
            eps_theta, unet_back = m.unet(cfg, p, x, T, SEEDS)
            loss, loss_back = l_simple(eps, eps_theta)
            return loss, lambda dloss: unet_back(loss_back(dloss))
        return loss

    return net._replace(bind=bind)


CASES = {"unet, learned variance": case(LEARNED), "loss of unet": loss_case(SMALL)}
SLOW = {"unet": case(SMALL), "unet, recompute": case(SMALL, SEEDS, recompute), "unet, attention up": case(UP_ONLY),
        "deep unet": case(DEEP, SEEDS)}


@cache
def numeric(name):
    """The numerical side of the check, shared with the planted faults."""
    return projections(CASES[name].f(), *CASES[name].args)


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    net = CASES[name]
    check_gradient(net.f(), *net.args, name=name, zero=net.zero, numeric=numeric(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("seed", [1, 2])
def test_gradient_of_more_networks(name, seed):
    net = SLOW[name]
    check_gradient(net.f(), *net.args, name=name, zero=net.zero, seed=seed)


@pytest.mark.parametrize("cfg", [SMALL, LEARNED, UP_ONLY])
def test_forward_equals_its_scalar_loop(cfg):
    p, x = case(cfg).args
    eps, _ = unet(cfg, p, x, T)
    assert eps.shape == (*x.shape[:3], cfg.out_channels)
    np.testing.assert_allclose(eps, twins.unet(cfg, p, x, T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seeds", [None, SEEDS])
def test_memory_policies_agree_bit_for_bit(seeds):
    p, x = case(DEEP).args
    p, x = tree.map(np.float32, p), x.astype(np.float32)
    eps, back = unet(DEEP, p, x, T, seeds, policy=store)
    eps_replayed, replay = unet(DEEP, p, x, T, seeds, policy=recompute)
    eps_only, no_back = unet(DEEP, p, x, T, seeds, policy=inference)
    np.testing.assert_array_equal(eps, eps_replayed)
    np.testing.assert_array_equal(eps, eps_only)
    (dx, dp), (dx_replayed, dp_replayed) = back(np.cos(eps)), replay(np.cos(eps))
    np.testing.assert_array_equal(dx, dx_replayed)
    assert tree.flatten(dp).keys() == tree.flatten(p).keys() == tree.flatten(dp_replayed).keys()
    for name, gradient in tree.flatten(dp).items():
        np.testing.assert_array_equal(gradient, tree.flatten(dp_replayed)[name], err_msg=name)
        assert gradient.dtype == np.float32
    with pytest.raises(TypeError):
        no_back(eps)


def test_each_image_is_by_itself():
    p, x = case(SMALL).args
    both, _ = unet(SMALL, p, x, T, SEEDS)
    for k in range(2):
        one, _ = unet(SMALL, p, x[k:k + 1], int(T[k]), SEEDS[k:k + 1])
        np.testing.assert_allclose(one[0], both[k], rtol=1e-12, atol=1e-12)


def test_an_images_seed_decides_its_masks_and_no_others():
    p, x = case(SMALL).args
    first, _ = unet(SMALL, p, x, T, [1, 2])
    other, _ = unet(SMALL, p, x, T, [1, 3])
    without, _ = unet(SMALL, p, x, T)
    np.testing.assert_array_equal(first[0], other[0])
    assert not np.allclose(first[1], other[1]) and not np.allclose(first[0], without[0])


def test_each_residual_block_has_its_own_mask(monkeypatch):
    seen = []
    real = layers.dropout
    monkeypatch.setattr(layers, "dropout", lambda x, rate, seeds, number: seen.append(number) or real(x, rate, seeds, number))
    p, x = case(DEEP).args
    unet(DEEP, p, x, T, SEEDS)
    assert seen == list(range(3 * 2 + 2 + 3 * 3))                           # down, middle, up: in the order of the network


def test_the_timestep_reaches_the_output_of_the_presets():
    for cfg in UNetConfig.tiny(), UNetConfig.small():
        p = tree.map(np.float32, weights(cfg))
        x = draw(1, cfg.image_size, cfg.image_size, 1).astype(np.float32)
        a, b = (unet(cfg, p, x, t, policy=inference)[0] for t in (1, 500))
        assert a.shape == x.shape and np.abs(a - b).mean() > 0.01


# Names and shapes: those of diffusers' UNet2DModel for the released networks, OIHW there, HWIO here


def paper_shapes(in_channels, out_channels, down, mid, up, attention):
    """Every tensor by the table.  down, up: for each block its residual blocks' (Cin, Cout); attention: {block's path: width}."""
    ch = down[0][0][0]
    table = {"conv_in": (3, 3, in_channels, ch), "conv_out": (3, 3, ch, out_channels), "conv_norm_out": (ch,),
             "time_embedding.linear_1": (ch, 4 * ch), "time_embedding.linear_2": (4 * ch, 4 * ch)}
    levels = {f"down_blocks.{i}": block for i, block in enumerate(down)}
    levels |= {f"up_blocks.{i}": block for i, block in enumerate(up)} | {"mid_block": [(mid, mid)] * 2}
    for path, block in levels.items():
        for j, (c_in, c_out) in enumerate(block):
            table |= {f"{path}.resnets.{j}.norm1": (c_in,), f"{path}.resnets.{j}.conv1": (3, 3, c_in, c_out),
                      f"{path}.resnets.{j}.time_emb_proj": (4 * ch, c_out), f"{path}.resnets.{j}.norm2": (c_out,),
                      f"{path}.resnets.{j}.conv2": (3, 3, c_out, c_out)}
            if c_in != c_out:
                table[f"{path}.resnets.{j}.conv_shortcut"] = (1, 1, c_in, c_out)
    for path, (width, number) in attention.items():
        for j in range(number):
            table |= {f"{path}.attentions.{j}.{part}": (width, width) for part in ("to_q", "to_k", "to_v", "to_out.0")}
            table[f"{path}.attentions.{j}.group_norm"] = (width,)
    for i, block in enumerate(down[:-1]):
        table[f"down_blocks.{i}.downsamplers.0.conv"] = (3, 3, block[-1][1], block[-1][1])
    for i, block in enumerate(up[:-1]):
        table[f"up_blocks.{i}.upsamplers.0.conv"] = (3, 3, block[-1][1], block[-1][1])
    return {f"{name}.{kind}": shape if kind == "weight" else shape[-1:]
            for name, shape in table.items() for kind in ("weight", "bias")}


CIFAR10 = paper_shapes(
    3, 3, mid=256,
    down=[[(128, 128), (128, 128)], [(128, 256), (256, 256)], [(256, 256), (256, 256)], [(256, 256), (256, 256)]],
    up=[[(512, 256), (512, 256), (512, 256)], [(512, 256), (512, 256), (512, 256)],
        [(512, 256), (512, 256), (384, 256)], [(384, 128), (256, 128), (256, 128)]],
    attention={"down_blocks.1": (256, 2), "mid_block": (256, 1), "up_blocks.2": (256, 3)})
IMAGE256 = paper_shapes(
    3, 3, mid=512,
    down=[[(128, 128)] * 2, [(128, 128)] * 2, [(128, 256), (256, 256)], [(256, 256)] * 2, [(256, 512), (512, 512)],
          [(512, 512)] * 2],
    up=[[(1024, 512)] * 3, [(1024, 512), (1024, 512), (768, 512)], [(768, 256), (512, 256), (512, 256)],
        [(512, 256), (512, 256), (384, 256)], [(384, 128), (256, 128), (256, 128)], [(256, 128)] * 3],
    attention={"down_blocks.4": (512, 2), "mid_block": (512, 1), "up_blocks.1": (512, 3)})


@pytest.mark.parametrize("cfg, table, tensors, total", [(UNetConfig.cifar10(), CIFAR10, 328, 35_746_307),
                                                        (UNetConfig.image256(), IMAGE256, 450, 113_673_219)])
def test_the_papers_parameters(cfg, table, tensors, total):
    assert shapes(cfg) == table
    assert len(table) == tensors
    assert sum(map(math.prod, shapes(cfg).values())) == total


def test_a_learned_variance_has_twice_the_output_channels():
    cfg = UNetConfig(32, 3, widths=(128, 256, 256, 256), blocks=2, attention=(1,), learned_sigma=True)
    assert sum(map(math.prod, shapes(cfg).values())) == 35_749_766 and cfg.out_channels == 6


def test_parameters_of_each_stage_of_the_cifar10_network():
    """Computed from the shapes of App. B's network, stage by stage; together the paper's 35.7 million."""
    expected = {"time_embedding": 328_704, "conv_in": 3_584, "down_blocks.0": 870_272, "down_blocks.1": 3_480_320,
                "down_blocks.2": 3_215_104, "down_blocks.3": 2_625_024, "mid_block": 2_888_704, "up_blocks.0": 6_692_608,
                "up_blocks.1": 6_692_608, "up_blocks.2": 7_155_712, "up_blocks.3": 1_789_952, "conv_norm_out": 256,
                "conv_out": 3_459}
    found = dict.fromkeys(expected, 0)
    for name, shape in shapes(UNetConfig.cifar10()).items():
        found[re.match(r"(down_blocks|up_blocks)\.\d|\w+", name)[0]] += math.prod(shape)
    assert found == expected


def test_attention_on_the_way_up_can_differ():
    on_both = dict(image_size=4, in_channels=1, widths=(4, 4), blocks=1, groups=2)
    both, up = shapes(UNetConfig(attention=(0,), **on_both)), shapes(UNetConfig(attention=(), attention_up=(0,), **on_both))
    assert {name for name in both.keys() ^ up.keys()} == {name for name in both if "down_blocks.0.attentions" in name}
    down = shapes(UNetConfig(attention=(0,), attention_up=(), **on_both))
    assert {name for name in both.keys() ^ down.keys()} == {name for name in both if "up_blocks.1.attentions" in name}


def test_presets():
    assert sum(map(math.prod, shapes(UNetConfig.tiny()).values())) == 701_345
    for make, size in ((UNetConfig.tiny, 8), (UNetConfig.small, 16), (UNetConfig.medium, 28), (UNetConfig.cifar10, 32),
                       (UNetConfig.image256, 256)):
        assert make().image_size == size and make(in_channels=5).in_channels == 5
    assert UNetConfig.cifar10().dropout == 0.1 and UNetConfig.image256().dropout == 0
    assert UNetConfig.cifar10().eps == 1e-6 and UNetConfig.cifar10().groups == 32


# initial values


def fans(shape):
    pixels = math.prod(shape[:-2])                      # k·k for a convolution, 1 for a dense layer
    return pixels * shape[-2], pixels * shape[-1]


SCALED_DOWN = re.compile(r"resnets\.\d\.conv2\.weight$|attentions\.\d\.to_out\.0\.weight$|^conv_out\.weight$")


@pytest.mark.parametrize("cfg", [UNetConfig.tiny(), UNetConfig.cifar10()])
def test_initial_values_are_those_of_the_released_code(cfg):
    """Uniform, of variance scale / fan_avg: within ±√(3 scale / fan_avg); scale 1e-10 for the last layer of each branch."""
    p = tree.flatten(init(cfg, seed=0))
    assert {name: leaf.shape for name, leaf in p.items()} == shapes(cfg)
    scaled_down = 0
    for name, leaf in p.items():
        assert leaf.dtype == np.float32, name
        if name.endswith("bias"):
            assert (leaf == 0).all(), name
        elif leaf.ndim == 1:
            assert (leaf == 1).all(), name              # γ
        else:
            scale = 1e-10 if SCALED_DOWN.search(name) else 1.0
            scaled_down += scale != 1
            variance = scale / (sum(fans(leaf.shape)) / 2)
            bound = math.sqrt(3 * variance)
            n, values = leaf.size, leaf.astype(np.float64)
            assert np.abs(values).max() <= bound * (1 + 1e-6), name
            assert np.abs(values).max() > bound * (1 - 20 / n), name
            assert abs(values.mean()) < 6 * math.sqrt(variance / n), name
            assert abs((values**2).mean() / variance - 1) < 6 * math.sqrt(4 / 5 / n), name      # E u⁴ = 9/5 (E u²)²
    resnets = sum(name.endswith("conv2.weight") for name in p)
    attentions = sum(name.endswith("to_out.0.weight") for name in p)
    assert scaled_down == resnets + attentions + 1


def test_initial_values_depend_on_the_seed_alone():
    first, again, other = (tree.flatten(init(UNetConfig.tiny(), seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    different = {name for name in first if not np.array_equal(first[name], other[name])}
    assert different == {name for name in first if first[name].ndim > 1}
    weights = [leaf.ravel()[:16] for leaf in first.values() if leaf.ndim > 1]
    signs = {tuple(np.sign(leaf)) for leaf in weights}
    assert len(signs) == len(weights)                   # no two leaves from the same draws


def untrained_loss(cfg, B):
    rng = np.random.default_rng(0)
    x, eps = (rng.standard_normal((B, cfg.image_size, cfg.image_size, cfg.in_channels), dtype=np.float32) for _ in range(2))
    eps_theta, _ = unet(cfg, init(cfg, 0), x, rng.integers(1, 1001, B), policy=inference)
    assert np.abs(eps_theta).max() < 0.01
    return l_simple(eps, eps_theta)[0].mean()


def test_an_untrained_networks_loss_is_one():
    assert abs(untrained_loss(UNetConfig.small(in_channels=3), B=64) - 1) < 0.02


@pytest.mark.slow
def test_an_untrained_cifar10_networks_loss_is_one():
    assert abs(untrained_loss(UNetConfig.cifar10(), B=16) - 1) < 0.02


# errors


@pytest.mark.parametrize("change, message", [
    (dict(image_size=30, widths=(32, 32, 32)), "image_size 30 cannot be halved 2 times for 3 levels"),
    (dict(widths=(32, 36)), r"groups 8 does not divide every width of \(32, 36\)"),
    (dict(attention=(2,)), r"attention names levels \(2,\).*; expected some of 0..1"),
    (dict(attention=(-1,)), "attention names levels"),
    (dict(attention_up=(0, 2)), r"attention names levels .*\(0, 2\); expected some of 0..1"),
    (dict(widths=(3, 6), groups=3), r"widths\[0\] is 3; the timestep embedding needs an even number of at least 4"),
    (dict(widths=(2, 4), groups=2), r"widths\[0\] is 2"),
    (dict(dropout=1.0), "dropout is 1.0; expected 0 <= dropout < 1"),
    (dict(dropout=-0.1), "dropout is -0.1"),
])
def test_impossible_sizes_are_refused(change, message):
    good = dict(image_size=8, in_channels=1, widths=(32, 64), blocks=1, attention=(1,), groups=8)
    UNetConfig(**good)
    with pytest.raises(ValueError, match=message):
        UNetConfig(**good | change)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (2, 3, 4, 2), (2, 4, 5, 2), (4, 4, 2)])
def test_an_x_of_another_size_is_refused(shape):
    p, _ = case(SMALL).args
    with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}; expected (B, H, W, 2) with H and W multiples of 2")):
        unet(SMALL, p, np.zeros(shape), 1)
