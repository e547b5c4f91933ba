"""`minddpm evaluate`: bits/dim of a model with a known answer, sample quality, what is printed, written and refused."""

import json
import math
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
import scipy.linalg

from minddpm import data
from minddpm.app import cli, evaluate, run, settings
from minddpm.app.metrics import frechet, nearest, pca, standard_error
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.fast import Workers
from minddpm.likelihood import vlb
from minddpm.model import Model
from minddpm.random import rng
from minddpm.unet import UNetConfig

# Distances ----------------------------------------------------------------------------------------------------------------


def test_standard_error_of_two_values():
    assert standard_error(np.array([0.0, 2.0])) == pytest.approx(1)             # √(Σ (x − 1)² / (2 − 1)) / √2
    assert math.isnan(standard_error(np.ones(1)))


def cloud(mean, root, n=400, seed=0):
    """n vectors whose mean and covariance are exactly `mean` and root rootᵀ."""
    z = np.random.default_rng(seed).standard_normal((n, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return mean + z @ np.asarray(root).T


def test_frechet_distance_of_known_gaussians():
    a, b = cloud([0, 0, 1], np.diag([1.0, 2.0, 3.0])), cloud([1, -1, 1], np.diag([1.0, 4.0, 0.5]), seed=1)
    assert frechet(a, b) == pytest.approx(2 + 0 + 4 + 6.25, rel=1e-12)          # ‖m_a − m_b‖² + Σ (σ_a − σ_b)²
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(2)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    assert frechet(a @ turn, b @ turn) == pytest.approx(12.25, rel=1e-12)


def test_frechet_distance_equals_the_formula_with_a_matrix_square_root():
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((n, 6)) @ rng.standard_normal((6, 6)) + shift for n, shift in ((50, 0), (40, 1)))
    C_a, C_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(C_a + C_b - 2 * scipy.linalg.sqrtm(C_a @ C_b).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    few = a[:3]                                                                 # fewer vectors than features: still defined
    assert frechet(few, few) == pytest.approx(0, abs=1e-9) and frechet(few, b) > 0


def test_pca_features_are_the_directions_of_most_variance():
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((300, 16)) * np.arange(16, 0, -1) + 5).reshape(300, 4, 4, 1)
    features = pca(x, 5)
    f = features(x)
    assert f.shape == (300, 5)
    np.testing.assert_allclose(f.mean(0), 0, atol=1e-12)
    C, top = np.cov(f.T), np.sort(np.linalg.eigvalsh(np.cov(x.reshape(300, -1).T)))[::-1][:5]
    np.testing.assert_allclose(C, np.diag(top), atol=1e-9)
    assert pca(x, 50)(x).shape == (300, 16)
    assert ((features(x[:1]) - features(x[1:2])) ** 2).sum() <= ((x[0] - x[1]) ** 2).sum()       # not whitened: they only shrink


def test_nearest_neighbours_by_brute_force():
    rng = np.random.default_rng(5)
    images, x = rng.random((40, 3, 3, 1)).astype(np.float32), rng.random((23, 3, 3, 1)).astype(np.float32)
    x[7] = images[31]
    index, distance = nearest(x, images, chunk=5)
    all_pairs = np.sqrt(((x[:, None].astype(float) - images[None]) ** 2).sum((2, 3, 4)))
    np.testing.assert_array_equal(index, all_pairs.argmin(1))
    np.testing.assert_allclose(distance, all_pairs.min(1))
    assert index[7] == 31 and distance[7] == 0                                  # a copy is found to be one exactly


# A model with a known answer ----------------------------------------------------------------------------------------------

DIGITS = data.load("digits")


@dataclass(frozen=True, eq=False)
class Oracle(Model):
    """A model whose output is a function of x_t and t."""

    output: Any = None


def oracle_model(s, images, levels=17):
    """A finite data set's best denoiser in the place of a trained model."""
    params = {"conv_in": {"bias": np.zeros(1, np.float32)}}
    return Oracle(UNetConfig.tiny(1), params, s, output=oracles.finite(s, data.scale(images, levels).astype(np.float64)))


def test_table1_bits_of_many_images_are_the_bounds_of_its_batches():
    s, images = Schedule.linear(6, 0.02, 0.4), DIGITS.train[:70]
    model = oracle_model(s, images)
    with Workers(1) as workers:
        bound = evaluate.bits_per_dim(model, images, 17, seed=3, workers=workers)
    assert bound.L.shape == (70, 7)
    x0 = data.scale(images, 17)
    for k in 0, 64:
        alone = vlb(s, model.output, x0[k:k + 64], rng("bound", 3, k, evaluate.HELD_OUT), levels=17)
        np.testing.assert_allclose(bound.L[k:k + 64], alone.L, rtol=1e-6)
    summary = evaluate.summary(bound)
    assert summary["total"] == pytest.approx(summary["rate"] + summary["distortion"])
    assert summary["rate"] == pytest.approx(sum(summary["L"][1:])) and summary["rate_at_t"][1] == pytest.approx(summary["rate"])
    assert summary["total"] > math.log2(70) / 64                                # the entropy of 70 equally likely images


def test_eq13_L_0_with_the_released_codes_variance():
    """ε* of one image: an exact mean, whose L_0 for σ_1² = β̃_2 is computed: 1.30538 bits/dim on 256 levels."""
    image = np.full((1, 8, 8, 1), 100, np.uint8)
    with Workers(1) as workers:
        L_0 = evaluate.released_distortion(oracle_model(Schedule.linear(), image, 256), image, 256, seed=0, workers=workers)
    assert L_0[0] == pytest.approx(1.30538, abs=5e-6)


def test_sec4_a_model_that_copies_its_training_images_is_found_out(monkeypatch):
    s = Schedule.linear(3, 0.1, 0.5)
    model, quality = oracle_model(s, DIGITS.train[:5]), {}
    for name, images in {"copies": DIGITS.train[::9], "honest": DIGITS.held_out[::-1]}.items():
        monkeypatch.setattr(evaluate, "generate",
                            lambda model, n, *more, images=images, **even_more: data.scale(images[:n], 17))
        quality[name] = evaluate.sample_quality(model, DIGITS, 100, 0, None)
    q = quality["copies"]
    assert q["images"] == 100 and q["copies"] == 100 and q["closer_than_99_percent_of_held_out"] == 1
    assert q["frechet"]["samples"] < 3 * q["frechet"]["held_out"] < q["frechet"]["noise"]
    honest = quality["honest"]
    assert honest["copies"] <= 2 and honest["closer_than_99_percent_of_held_out"] < 0.1
    text = evaluate.quality_text(q)
    assert "100 samples are copies" in text and "no FID" in text and "100.0 % are nearer" in text


def test_each_batch_of_each_part_of_the_report_has_noise_of_its_own(monkeypatch):
    """Held-out images and the released code's L_0, two batches of each, and one of training images."""
    streams = []
    monkeypatch.setattr(evaluate, "rng", lambda *key: streams.append(key) or rng(*key))
    with Workers(1) as workers:
        evaluate.table_1(oracle_model(Schedule.linear(2, 0.02, 0.4), DIGITS.train[:3]), DIGITS, 70, 3, workers)
    noise = [key for key in streams if key[0] == "bound"]
    assert len(noise) == len(set(noise)) == 5 and {key[:2] for key in streams} == {("bound", 3), ("choice of images", 3)}


def test_choice_of_images_is_spread_and_reproducible():
    images = np.arange(100)
    chosen = evaluate.choose(images, 10, 0)
    assert len(set(chosen.tolist())) == 10 and chosen.max() > 50 > chosen.min()
    np.testing.assert_array_equal(chosen, evaluate.choose(images, 10, 0))
    assert len(evaluate.choose(images, 1000, 0)) == 100


# The command --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of digits that has not been trained, with few steps of diffusion."""
    begun = run.begin(tmp_path_factory.mktemp("runs") / "digits", settings.Settings(data="digits", T=12, beta_T=0.4, threads=1))
    run.save_run(begun)
    return begun.folder


def test_evaluate_prints_and_writes_the_parts(folder, tmp_path, capsys):
    path = tmp_path / "e.json"
    assert cli.main(["evaluate", str(folder), "-n", "6", "--threads", "1", "--json", str(path)]) == 0
    out, result = capsys.readouterr().out, json.loads(path.read_text())
    bits = result["bits_per_dim"]
    for name in "held_out", "train":
        row = bits[name]
        assert row["images"] == {"held_out": 6, "train": 2}[name]
        assert row["total"] == pytest.approx(row["rate"] + row["distortion"])
        assert f"{row['total']:.4f} ± {row['standard_error']:.4f}" in out and f"{row['distortion']:.4f}" in out
    assert len(bits["held_out"]["L"]) == 13 and bits["held_out"]["rmse_at_t"][0] == 0
    assert result["data"] == "digits" and result["levels"] == 17
    assert "held out  term 12/12" in out and "sample  step 12/12" in out        # both show their progress
    assert "warning: the schedule leaves ᾱ_T =" in out and "bits/dim" in out
    assert set(result["samples"]["frechet"]) == {"samples", "held_out", "noise"}
    for value in result["samples"]["frechet"].values():
        assert f"{value:.2f}" in out
    assert f"wrote {path}" in out


def test_evaluate_bpd_draws_no_samples(folder, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "generate", None)
    assert cli.main(["evaluate", str(folder), "--bpd", "-n", "2", "--threads", "1"]) == 0
    assert "Fréchet" not in capsys.readouterr().out


def test_evaluate_is_reproducible(folder, tmp_path):
    for name in "a", "b":
        evaluate.report(folder, 3, bpd=True, json=tmp_path / name, seed=5, threads=2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_evaluate_refuses(folder, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    (foreign / "settings.json").unlink()
    assert cli.main(["evaluate", str(foreign)]) == 2
    assert "has no settings.json: expected --data NAME|PATH" in capsys.readouterr().err
    assert cli.main(["evaluate", str(foreign), "--data", "mnist16"]) == 2
    assert "mnist16 has 16x16x1 images; the model expects 8x8x1" in capsys.readouterr().err
    assert cli.main(["evaluate", str(folder), "-n", "1"]) == 2
    assert "-n is 1; expected at least 2" in capsys.readouterr().err
    few = tmp_path / "few.npy"
    np.save(few, np.zeros((9, 8, 8), np.uint8))
    with pytest.raises(UserError, match="9 images to train on and 0 held out; expected at least 2 of each"):
        evaluate.report(folder, 5, str(few))
