"""Where the paper and its released code differ in a setting or in what is scored: see tests/test_paper_vs_code.py."""

import numpy as np
import pytest
from test_evaluate import DIGITS, oracle_model

from minddpm import optim
from minddpm.app import evaluate
from minddpm.app.settings import TRAINING, Settings
from minddpm.diffusion import Schedule
from minddpm.fast import Workers


def test_appb_warm_up_is_what_the_flag_says():
    def rates(warmup):
        return [optim.learning_rate(step, 2e-4, warmup) for step in (1, 2_500, 5_000, 800_000)]

    assert rates(0) == [2e-4] * 4                                                               # the paper
    assert rates(TRAINING["cifar10"]["warmup"]) == pytest.approx([2e-4 / 5_000, 1e-4, 2e-4, 2e-4])
    assert TRAINING["image256"]["warmup"] == 5_000 and TRAINING["tiny"]["warmup"] == 50
    assert Settings(warmup=0).resolved((32, 32, 3)).warmup == 0


def test_appb_flips_are_what_the_flag_says():
    for preset, shape, default in ("cifar10", (32, 32, 3), True), ("image256", (256, 256, 3), True), ("tiny", (8, 8, 1), False):
        assert Settings(preset=preset).resolved(shape).flips is default
        assert Settings(preset=preset, flips=not default).resolved(shape).flips is not default
    straight, flipped = (DIGITS.batch(24, 1, 0, flips) for flips in (False, True))
    mirrored = [bool((a != b).any()) for a, b in zip(straight, flipped, strict=True)]
    assert 0 < sum(mirrored) < len(mirrored)
    for a, b, mirror in zip(straight, flipped, mirrored, strict=True):
        np.testing.assert_array_equal(b, a[:, ::-1] if mirror else a)


def test_appb_steps_are_what_the_flag_says():
    assert Settings(preset="image256").resolved((256, 256, 3)).steps == 500_000                # CelebA-HQ
    for church in 1_200_000, 4_432_000:                                                         # the paper, the released weights
        assert Settings(preset="image256", steps=church).resolved((256, 256, 3)).steps == church


def test_table1_every_image_counts():
    """70 images in batches of 64: the released code's drop_remainder would score 64 of them."""
    assert evaluate.BATCH == 64 and 10_000 // 256 * 256 == 9_984
    s, images = Schedule.linear(3, 0.1, 0.5), DIGITS.train[:70]
    with Workers(1) as workers:
        total = evaluate.bits_per_dim(oracle_model(s, images[:64]), images, 17, seed=0, workers=workers).total
    assert total.shape == (70,)
    assert total.mean() > total[:64].mean() + 0.1                      # six that the oracle does not know
