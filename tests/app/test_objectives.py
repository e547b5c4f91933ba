"""Table 2 on the command line: a run with each objective learns, is saved, resumed and sampled; σ_t² follows the objective."""

import numpy as np
import pytest

import minddpm
from minddpm.app import cli, generate, loop, run
from minddpm.app.settings import Settings
from minddpm.errors import UserError
from minddpm.fast import Workers
from minddpm.objective import OBJECTIVES
from minddpm.train import Batch, gradient

SETTINGS = dict(data="digits", batch=12, steps=16, lr=3e-3, warmup=4, T=10, beta_T=0.5, ema=0.5, sample_every=0, save_every=0,
                threads=2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_learns_saves_loads_and_samples(tmp_path, name):
    trained = run.begin(tmp_path / "run", Settings(**SETTINGS, objective=name, lr_final=3e-3))
    settings, s, objective, rng = trained.settings, trained.settings.schedule(), OBJECTIVES[name], np.random.default_rng(1)
    x0 = trained.dataset.batch(32, 1, seed=1, flips=False)
    unseen = Batch(x0, rng.integers(1, 11, 32), rng.standard_normal(x0.shape, dtype=np.float32), np.arange(32))

    def loss_now():
        return gradient(name, trained.config, s, trained.state.params, unseen, settings.sigma2, 17)[0]

    before = loss_now()
    assert loop.train(trained)
    assert loss_now() < (0.95 if objective.predicts == "eps" else 0.8) * before
    model = minddpm.load(tmp_path / "run")
    assert (model.predicts, model.sigma2) == (objective.predicts, "learned" if objective.learned_sigma else "beta")
    assert model.config == trained.config and model.config.out_channels == (2 if objective.learned_sigma else 1)
    with Workers(2) as workers:
        x0 = generate.generate(model, 2, 0, workers)
        np.testing.assert_array_equal(x0, generate.generate(trained.model, 2, 0, workers))
    assert x0.shape == (2, 8, 8, 1) and np.isfinite(x0).all()


def test_a_run_with_a_learned_variance_resumes(tmp_path):
    assert loop.train(run.begin(tmp_path / "run", Settings(**SETTINGS | dict(steps=2), objective="mu-L-learned")))
    resumed = run.resume(tmp_path / "run", steps=4)
    assert loop.train(resumed) and resumed.state.step == 4 and resumed.settings.sigma2 == "learned"


@pytest.mark.parametrize("objective, sigma2, sentence", [
    ("mu-L-learned", "beta", "objective mu-L-learned learns Σ, but sigma2 is beta; expected no other sigma2 than learned"),
    ("eps-L-learned", "beta_tilde", "objective eps-L-learned learns Σ, but sigma2 is beta_tilde; expected no other"),
    ("simple", "learned", "objective simple does not learn Σ, but sigma2 is learned; expected beta or beta_tilde"),
])
def test_a_sigma2_that_contradicts_the_objective_is_one_sentence(tmp_path, capsys, objective, sigma2, sentence):
    with pytest.raises(UserError, match=sentence):
        Settings(data="digits", objective=objective, sigma2=sigma2).resolved((8, 8, 1))
    out = tmp_path / "run"
    assert cli.main(["train", "--data", "digits", "--objective", objective, "--sigma2", sigma2, "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("objective, sigma2, resolved", [
    ("simple", None, "beta"), ("simple", "beta_tilde", "beta_tilde"), ("mu-L", None, "beta"),
    ("x0-L", "beta_tilde", "beta_tilde"), ("mu-L-learned", None, "learned"), ("eps-L-learned", "learned", "learned"),
])
def test_sigma2_follows_from_the_objective(objective, sigma2, resolved):
    settings = Settings(data="digits", objective=objective, sigma2=sigma2).resolved((8, 8, 1))
    assert settings.sigma2 == resolved and settings.resolved((8, 8, 1)) == settings
    assert settings.config(1).learned_sigma == (resolved == "learned")


def test_another_variance_than_the_learned_one_is_refused_when_sampling(tmp_path, capsys):
    begun = run.begin(tmp_path / "run", Settings(**SETTINGS, objective="mu-L-learned"))
    run.save_run(begun)
    assert cli.main(["sample", str(begun.folder), "-n", "1", "--sigma2", "beta"]) == 2
    assert "sigma2 is beta, but this model has learned its variance; " in capsys.readouterr().err


def test_a_learned_variance_that_leaves_float64_ends_training_with_one_sentence(tmp_path):
    begun = run.begin(tmp_path / "run", Settings(**SETTINGS, objective="eps-L-learned"))
    begun.state.params["conv_out"]["bias"][1] = -1e6                        # σ² = e^−1000000
    with pytest.raises(UserError, match="^step 1: the loss is (nan|inf) and the gradient's norm "):
        loop.train(begun)
