"""model.py: a model's network output, ε_θ, samples and repr."""

import numpy as np
import pytest

from minddpm import model, tree
from minddpm.diffusion import Schedule
from minddpm.fast import ops_for
from minddpm.model import Model
from minddpm.reverse import split
from minddpm.sample import sample
from minddpm.unet import UNetConfig, init, layers, unet

S = Schedule.linear(6, 0.02, 0.4)
CFG = UNetConfig(8, 3, (8, 16), 1, (1,), groups=4)
LEARNED = UNetConfig(8, 3, (8, 16), 1, (1,), groups=4, learned_sigma=True)
HOW = {"as in the paper": {}, "fixed small, not clipped": dict(sigma2="beta_tilde", clip=False), "mu": dict(predicts="mu"),
       "x0": dict(predicts="x0"), "learned": dict(config=LEARNED, sigma2="learned"),
       "mu, learned": dict(config=LEARNED, sigma2="learned", predicts="mu")}
each_kind = pytest.mark.parametrize("how", HOW.values(), ids=HOW)


def made(config=CFG, **how):
    """A model with weights of which none is zero."""
    rng = np.random.default_rng(0)
    params = tree.map(lambda a: a + rng.normal(0, 0.1, a.shape).astype(np.float32), init(config, 0))
    return Model(config, params, S, **how)


@each_kind
def test_alg2_a_models_sample_is_that_of_its_output_and_its_choices(how):
    m = made(**how)
    expected = sample(S, m.output, (5, 8, 8, 3), 7, m.sigma2, m.clip, m.predicts)
    found = m.sample(5, 7)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_array_equal(found, expected)
    other = dict(how, sigma2="beta") if how.get("sigma2") == "beta_tilde" else dict(how, clip=not m.clip)
    assert not np.array_equal(found, made(**other).sample(5, 7))               # and the choice matters


@each_kind
def test_alg2_sample_k_of_a_model_is_the_same_whatever_n_and_first(monkeypatch, how):
    """Bit for bit in the same batches, and to float32's rounding in others, whose matrix products are of another size."""
    m = made(**how)
    monkeypatch.setattr(model, "BATCH", 3)
    whole = m.sample(8, 7)
    np.testing.assert_array_equal(m.sample(6, 7), whole[:6])
    np.testing.assert_array_equal(m.sample(5, 7, first=3), whole[3:])
    monkeypatch.setattr(model, "BATCH", 64)
    for n, first in (8, 0), (1, 0), (4, 2), (1, 7):
        found = m.sample(n, 7, first)
        assert found.shape == (n, 8, 8, 3)
        np.testing.assert_allclose(found, whole[first:first + n], atol=1e-5)     # measured: 2e-6
    assert len(np.unique(whole.reshape(8, -1), axis=0)) == 8
    assert np.abs(m.sample(1, 8) - whole[:1]).max() > 0.1                       # another seed


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("config", [CFG, LEARNED])
def test_appb_the_output_is_the_networks(dtype, config):
    m, x, t = made(config), np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(dtype), np.array([1, 500])
    expected, _ = unet(config, m.params, x.astype(np.float32), t)
    found = m.output(x, t)
    assert found.dtype == dtype and found.shape == (2, 8, 8, config.out_channels)
    np.testing.assert_array_equal(found, expected.astype(dtype))
    np.testing.assert_array_equal(m.eps_theta(x, t), found[..., :3])           # without the log-variance
    fast = made(config, ops=ops_for(m.params, 8)).output(x, t)
    np.testing.assert_allclose(fast.astype(float), expected, atol=2e-3 if dtype == np.float16 else 1e-5)


def test_appb_the_network_is_computed_by_the_models_layers():
    class Recorded:
        used = set()

        def __getattr__(self, name):
            self.used.add(name)
            return getattr(layers, name)

    made(ops=Recorded()).sample(1, 0)
    assert {"attention", "conv2d", "group_norm", "linear", "upsample"} <= Recorded.used


def test_eq11_eps_theta_is_what_split_takes_for_the_prediction():
    m, x = made(LEARNED, sigma2="learned"), np.random.default_rng(2).standard_normal((2, 8, 8, 3))
    prediction, log_var = split(m.output(x, 3), x, "learned")
    np.testing.assert_array_equal(m.eps_theta(x, 3), prediction)
    assert not np.array_equal(prediction, log_var)


@pytest.mark.parametrize("predicts", ["mu", "x0"])
def test_eps_theta_refuses_a_model_that_predicts_something_else(predicts):
    m, x = made(predicts=predicts), np.zeros((1, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match=f"this model predicts {predicts}, not eps; expected Model.output"):
        m.eps_theta(x, 3)
    assert m.output(x, 3).shape == x.shape


def test_the_repr_is_short_and_has_the_choices():
    text = repr(made(sigma2="beta_tilde", clip=False, predicts="x0"))
    assert len(text) < 300 and "\n" not in text and "array" not in text
    assert all(part in text for part in ("T=6", "sigma2='beta_tilde'", "clip=False", "predicts='x0'", "image_size=8"))
