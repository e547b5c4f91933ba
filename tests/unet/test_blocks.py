"""blocks.py: each block against its scalar-loop twin, each gradient by projection, each memory policy against the others."""

from itertools import repeat

import numpy as np
import pytest
import twins
from gradcheck import Case, check_gradient, random_parameters, read_only

from minddpm import tree
from minddpm.unet import UNetConfig, blocks, parameters
from minddpm.unet.blocks import Net
from minddpm.unet.network import time_mlp
from minddpm.unet.recompute import inference, recompute, store

BLOCKS, UNET = "minddpm.unet.blocks", "minddpm.unet.network"
SOFTMAX = "the softmax does not see what is added to all scores of a row"

CFG = UNetConfig(4, 2, widths=(4, 6), blocks=2, attention=(1,), groups=2, dropout=0.3)
P = random_parameters(tree.map(lambda draw: draw.shape, parameters(CFG)), seed=5)
KEY = [7, 2**64 - 1], 3                 # dropout: the seeds of two images, and the block's number
ONE_CHANNEL = UNetConfig(4, 2, widths=(4, 4), blocks=1, attention=(), groups=4)


def draw(*shape, seed=0):
    return read_only(np.random.default_rng([seed, *shape]).standard_normal(shape))


def softmax_zeros(*names):
    return {f"{name}.to_k.bias": SOFTMAX for name in names}


def keys(key):
    """One key for each residual block, their numbers counted from 0; None where there is no dropout."""
    return repeat(None) if key is None else iter([(key[0], number) for number in range(9)])


def resblock(cfg=CFG, key=None):
    return lambda m: lambda p, x, temb: m.resblock(Net(cfg), p, x, temb, key)


def down_block(key=None, policy=store):
    def bind(m):
        def f(p, x, temb):
            h, skips, back = m.down_block(Net(CFG, policy=policy), p, x, temb, keys(key))
            return {"h": h, "skips": skips}, lambda dy: back(dy["h"], dy["skips"])
        return f
    return bind


def mid_block(key=None, policy=store):
    return lambda m: lambda p, x, temb: m.mid_block(Net(CFG, policy=policy), p, x, temb, keys(key))


def up_block(key=None, policy=store):
    return lambda m: lambda p, x, skips, temb: m.up_block(Net(CFG, policy=policy), p, x, skips, temb, keys(key))


DOWN, MID, UP = P["down_blocks"], P["mid_block"], P["up_blocks"]
TEMB = draw(2, 16)
SKIPS = [draw(2, 2, 2, c, seed=i) for i, c in enumerate((6, 6, 4))], [draw(2, 4, 4, 4, seed=i) for i in range(3)]

CASES = {
    "resblock C=N":           Case(BLOCKS, resblock(), (DOWN[0]["resnets"][0], draw(2, 4, 3, 4), TEMB)),
    "resblock C!=N":          Case(BLOCKS, resblock(), (DOWN[1]["resnets"][0], draw(2, 4, 3, 4), TEMB)),
    "resblock C=N dropout":   Case(BLOCKS, resblock(key=KEY), (DOWN[0]["resnets"][0], draw(2, 4, 3, 4), TEMB)),
    "resblock C!=N dropout":  Case(BLOCKS, resblock(key=KEY), (DOWN[1]["resnets"][0], draw(2, 4, 3, 4), TEMB)),
    "resblock one image":     Case(BLOCKS, resblock(), (DOWN[1]["resnets"][0], draw(1, 2, 2, 4), draw(1, 16))),
    "attention_block":        Case(BLOCKS, lambda m: lambda p, x: m.attention_block(Net(CFG), p, x),
                                   (DOWN[1]["attentions"][0], draw(2, 3, 2, 6)), softmax_zeros("p")),
    "down_block, downsample": Case(BLOCKS, down_block(), (DOWN[0], draw(2, 4, 4, 4), TEMB)),
    "down_block, attention":  Case(BLOCKS, down_block(KEY), (DOWN[1], draw(2, 2, 2, 4), TEMB),
                                   softmax_zeros("p.attentions.0", "p.attentions.1")),
    "down_block, recompute":  Case(BLOCKS, down_block(KEY, recompute), (DOWN[0], draw(2, 4, 4, 4), TEMB)),
    "mid_block":              Case(BLOCKS, mid_block(), (MID, draw(2, 2, 2, 6), TEMB), softmax_zeros("p.attentions.0")),
    "up_block, upsample":     Case(BLOCKS, up_block(KEY), (UP[0], draw(2, 2, 2, 6), SKIPS[0], TEMB),
                                   softmax_zeros("p.attentions.0", "p.attentions.1", "p.attentions.2")),
    "up_block, top":          Case(BLOCKS, up_block(), (UP[1], draw(2, 4, 4, 6), SKIPS[1], TEMB)),
    "upsample_conv":          Case(BLOCKS, lambda m: lambda p, x: m.upsample_conv(Net(CFG), p, x),
                                   (UP[0]["upsamplers"][0]["conv"], draw(2, 2, 3, 6))),
    "time_mlp":               Case(UNET, lambda m: lambda p: m.time_mlp(Net(CFG), p, draw(2, 4)), (P["time_embedding"],)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    case = CASES[name]
    check_gradient(case.f(), *case.args, name=name, zero=case.zero)


def test_gradient_where_one_channel_a_group_cancels_the_timestep():
    p = random_parameters(tree.map(lambda d: d.shape, parameters(ONE_CHANNEL)), seed=6)["down_blocks"][0]["resnets"][0]
    why = "norm2 with one channel a group takes away what is added to all pixels of a channel"
    zero = dict.fromkeys(["p.conv1.bias", "p.time_emb_proj.weight", "p.time_emb_proj.bias", "temb"], why)
    case = Case(BLOCKS, resblock(ONE_CHANNEL), (p, draw(2, 4, 3, 4), TEMB), zero)
    check_gradient(case.f(), *case.args, name="resblock groups=C", zero=case.zero)


@pytest.mark.parametrize("name", ["resblock C=N", "resblock C!=N", "attention_block"])
def test_forward_equals_its_scalar_loop(name):
    case = CASES[name]
    twin, args = twins.attention_block, case.args
    if name != "attention_block":                                       # whose temb is before the swish
        twin, args = twins.resblock, (*case.args[:-1], twins.swish(case.args[-1]))
    y, _ = case.f()(*args)
    np.testing.assert_allclose(y, twin(CFG, *case.args), rtol=1e-10, atol=1e-10)


def test_time_mlp_equals_its_scalar_loop():
    emb, p = draw(2, 4), P["time_embedding"]
    temb, _ = time_mlp(Net(CFG), p, emb)
    expected = twins.swish(twins.linear(p["linear_2"], twins.swish(twins.linear(p["linear_1"], emb))))
    np.testing.assert_allclose(temb, expected, rtol=1e-10)


def test_a_level_hands_every_output_on_as_a_skip():
    h, skips, _ = blocks.down_block(Net(CFG), DOWN[0], draw(2, 4, 4, 4), TEMB, repeat(None))
    assert [skip.shape for skip in skips] == [(2, 4, 4, 4), (2, 4, 4, 4), (2, 2, 2, 4)] and h is skips[-1]
    _, skips, _ = blocks.down_block(Net(CFG), DOWN[1], h, TEMB, repeat(None))
    assert [skip.shape for skip in skips] == [(2, 2, 2, 6), (2, 2, 2, 6)]


def test_the_up_path_takes_the_skips_in_their_order():
    p, x, skips, temb = CASES["up_block, top"].args
    h, _ = blocks.up_block(Net(CFG), p, x, skips, temb, repeat(None))
    expected = x
    for resnet, skip in zip(p["resnets"], skips, strict=True):
        expected, _ = blocks.resblock(Net(CFG), resnet, np.concatenate([expected, skip], axis=-1), temb)
    np.testing.assert_array_equal(h, expected)


@pytest.mark.parametrize("make, name", [(down_block, "down_block, attention"), (mid_block, "mid_block"),
                                        (up_block, "up_block, upsample")])
@pytest.mark.parametrize("key", [None, KEY])
def test_memory_policies_agree_bit_for_bit(make, name, key):
    args = CASES[name].args
    (y, back), (y2, replay) = (make(key, policy)(blocks)(*args) for policy in (store, recompute))
    dy = tree.map(np.cos, y)
    for kept, replayed in (y, y2), (list(back(dy)), list(replay(dy))):
        assert tree.flatten(kept).keys() == tree.flatten(replayed).keys()
        assert all(np.array_equal(a, b) for a, b in zip(tree.leaves(kept), tree.leaves(replayed), strict=True))
    y3, _ = make(key, inference)(blocks)(*args)
    assert all(np.array_equal(a, b) for a, b in zip(tree.leaves(y), tree.leaves(y3), strict=True))


def test_inference_has_no_pullback_and_recompute_holds_only_the_arguments():
    case = CASES["resblock C!=N"]
    f = case.f()
    assert inference(f, *case.args)[1] is None
    _, back = recompute(f, *case.args)
    held = [cell.cell_contents for cell in back.__closure__]
    assert len(held) == 2 and f in held and case.args in held
