"""settings.py: the settings and their bounds, what the presets fill in, and the way through settings.json and back."""

import json
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minddpm.app import settings
from minddpm.app.settings import PRESETS, TRAINING, Settings, prior_warning
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.likelihood import prior_term
from minddpm.storage import files
from minddpm.unet.recompute import recompute, store

FIELDS = {f.name: f for f in fields(Settings)}
NUMBERS = [name for name, f in FIELDS.items() if f.metadata["kind"] in (int, float) and not f.metadata["choices"]]
CHOICES = [name for name, f in FIELDS.items() if f.metadata["choices"]]
OPTIONAL = [name for name, f in FIELDS.items() if f.default is None]


def valid(f):
    """A strategy for the values that a setting may have."""
    kind, low, high, choices = (f.metadata[k] for k in ("kind", "low", "high", "choices"))
    if choices:
        values = st.sampled_from(sorted(choices))
    elif kind is float:
        values = st.floats(low, high, allow_subnormal=False) | st.sampled_from([int(low), low, high])
    elif kind is int:
        values = st.integers(low, None if high == math.inf else high)
    else:
        values = st.booleans() if kind is bool else st.text(st.characters(codec="utf-8"), min_size=1)
    return values | st.none() if f.default is None else values


@hypothesis_settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({}, optional={name: valid(f) for name, f in FIELDS.items()}))
def test_settings_go_through_json_and_back(tmp_path, values):
    requested = Settings(**values)
    files.write_json(tmp_path / "settings.json", asdict(requested))
    assert settings.read(tmp_path) == requested
    json.loads((tmp_path / "settings.json").read_text(), parse_constant=pytest.fail)      # NaN and Infinity are no JSON


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds(name):
    kind, low, high = (FIELDS[name].metadata[k] for k in ("kind", "low", "high"))
    assert getattr(Settings(**{name: low}), name) == low
    below = [low - 1, low - 1e-9, -math.inf] if kind is float else [low - 1, -10**400]
    above = [] if high == math.inf else [high + 1, 10**400]
    if high != math.inf:
        assert getattr(Settings(**{name: high}), name) == high
    for value in below + above:
        with pytest.raises(UserError, match=rf"^{name} is .*; expected (at least {low}|{low} to {high})$"):
            Settings(**{name: value})


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", ["", "nonsense", "1", 0.5, math.nan, math.inf, True, [], {}, [1], b"1", None])
def test_a_value_of_the_wrong_kind_is_one_sentence(name, value):
    f = FIELDS[name]
    kind = f.metadata["kind"]
    accepted = (value is None and f.default is None or type(value) is kind and not f.metadata["choices"] and kind is not float
                or kind is float and value == 0.5)
    if accepted:
        assert getattr(Settings(**{name: value}), name) == value
        return
    with pytest.raises(UserError, match=f"^{name} is .*; expected ") as error:
        Settings(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_names_what_there_is(name):
    choices = FIELDS[name].metadata["choices"]
    with pytest.raises(UserError) as error:
        Settings(**{name: "gibberish"})
    assert str(error.value) == f"{name} is 'gibberish'; expected one of {', '.join(choices)}"


def test_numbers_keep_their_kind():
    assert Settings(lr=1).lr == 1                                   # a whole number is a number,
    for wrong in dict(steps=1.0), dict(steps=True), dict(flips=1), dict(lr=True):
        with pytest.raises(UserError):                              # but neither a bool nor the other way round
            Settings(**wrong)


def test_every_setting_has_help_and_the_defaults_are_valid():
    for f in FIELDS.values():
        assert len(f.metadata["help"]) > 2 and "\n" not in f.metadata["help"]
    assert Settings() == Settings(**{name: f.default for name, f in FIELDS.items()})


@pytest.mark.parametrize("preset", PRESETS)
def test_resolved_fills_in_the_presets_choices_for_its_size(preset):
    size = PRESETS[preset]().image_size
    for channels in 1, 3:
        resolved = Settings().resolved((size, size, channels))
        assert resolved.preset == preset
        assert {name: getattr(resolved, name) for name in TRAINING[preset]} == TRAINING[preset]
        assert all(getattr(resolved, name) is not None for name in OPTIONAL if name not in ("threads", "lr_final"))
        config = resolved.config(channels)
        assert (config.image_size, config.in_channels, config.dropout) == (size, channels, resolved.dropout)
        assert resolved.resolved((size, size, channels)) == resolved               # what settings.json holds stays as it is


@hypothesis_settings(deadline=None, max_examples=100)
@given(preset=st.sampled_from(sorted(PRESETS)), values=st.fixed_dictionaries({}, optional={
    name: valid(f) for name, f in FIELDS.items() if name not in ("preset", "sigma2")}))
def test_resolved_keeps_what_was_given(preset, values):
    size = PRESETS[preset]().image_size
    resolved = Settings(**values).resolved((size, size, 1))
    for name, value in values.items():
        if value is not None:
            assert getattr(resolved, name) == value
    assert resolved.resolved((size, size, 1)) == resolved


def test_a_given_learning_rate_is_kept_without_the_presets_decay():
    shape = (8, 8, 1)
    assert Settings().resolved(shape).lr_final == 1e-5
    assert Settings(lr=1e-4).resolved(shape).lr_final is None
    assert Settings(lr=1e-4, lr_final=1e-6).resolved(shape).lr_final == 1e-6
    assert Settings(lr_final=1e-6).resolved(shape).lr_final == 1e-6


@pytest.mark.parametrize("shape", [(9, 9, 1), (8, 16, 1), (16, 8, 3), (64, 64, 3)])
def test_images_that_no_preset_is_for(shape):
    with pytest.raises(UserError, match=f"^no preset is made for {'x'.join(map(str, shape))} images; expected one of tiny 8x8, "):
        Settings().resolved(shape)


@pytest.mark.parametrize("shape, found", [((16, 16, 1), "16x16x1"), ((8, 16, 3), "8x16x3")])
def test_images_of_another_size_than_the_presets(shape, found):
    with pytest.raises(UserError) as error:
        Settings(data="mine", preset="tiny").resolved(shape)
    assert str(error.value) == f"data set mine has {found} images; preset tiny expects 8x8"


def test_the_papers_own_settings():
    """Sec. 4 and App. B: T = 1000, β linear from 1e-4 to 0.02; CIFAR-10: 800k steps of 128, 2e-4, dropout 0.1, EMA 0.9999."""
    paper = Settings().resolved((32, 32, 3))
    assert (paper.preset, paper.steps, paper.batch, paper.lr, paper.lr_final) == ("cifar10", 800_000, 128, 2e-4, None)
    assert (paper.dropout, paper.ema, paper.flips) == (0.1, 0.9999, True)
    large = Settings().resolved((256, 256, 3))
    assert (large.preset, large.batch, large.lr, large.dropout) == ("image256", 64, 2e-5, 0.0)
    s = paper.schedule()
    assert (s.T, s.beta[1], s.beta[1000]) == (1000, 1e-4, 0.02)


def test_app_b_schedules():
    requested = Settings(T=10, beta_1=0.01, beta_T=0.09)
    np.testing.assert_allclose(requested.schedule().beta[1:], np.linspace(0.01, 0.09, 10))
    np.testing.assert_allclose(replace(requested, beta_schedule="quadratic").schedule().beta[1:], np.linspace(0.1, 0.3, 10) ** 2)
    np.testing.assert_allclose(replace(requested, beta_schedule="constant").schedule().beta[1:], 0.09)
    for wrong in dict(beta_1=0.0), dict(beta_T=1.0), dict(beta_T=1.0, beta_schedule="constant"):
        with pytest.raises(UserError, match="^beta runs from .* expected 0 < beta < 1"):
            replace(requested, **wrong).schedule()


def test_sec4_warning_has_the_number():
    for good in Schedule.linear(), Schedule.quadratic(), Schedule.constant():           # App. B's three
        assert prior_warning(good) is None
    short = Schedule.linear(T=100)
    text = prior_warning(short)
    largest = prior_term(short, np.ones((1, 3)))[0]
    assert f"ᾱ_T = {short.alpha_bar[100]:.2g} at T = 100" in text and f"{largest:.2g} bits/dim" in text


def test_memory_is_the_policy_of_the_network():
    assert Settings().policy is Settings(memory="keep").policy is store
    assert Settings(memory="checkpoint").policy is recompute


@pytest.mark.parametrize("content, sentence", [
    (b"", "is not valid JSON: "),
    (b'{"steps": 1', "is not valid JSON: "),
    (b"\xff\xfe", "is not valid JSON: "),
    (b"[" * 100_000, "is not valid JSON: "),
    (b'{"steps": %s}' % (b"9" * 5000), "is not valid JSON: "),
    (b"[1]", "holds a JSON list; expected an object"),
    (b"null", "holds a JSON NoneType; expected an object"),
    (b'{"stepz": 1}', ": setting stepz is unknown to this version of minddpm"),
    (b'{"steps": 0}', ": steps is 0; expected 1 to 1000000000"),
    (b'{"steps": "1"}', ": steps is '1'; expected a whole number"),
    (b'{"preset": []}', r": preset is \[\]; expected one of tiny, small"),
    (b'{"objective": {}}', ": objective is {}; expected one of simple"),
    (b'{"data": null}', ": data is None; expected a text"),
    (b'{"T": null}', ": T is None; expected a whole number"),
    (b'{"lr": NaN}', ": lr is nan; expected 0 to 1"),
    (b'{"grad_clip": Infinity}', ": grad_clip is inf; expected 0 to "),
])
def test_a_foreign_or_damaged_settings_json_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match=f"settings.json ?{sentence}") as error:
        settings.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run(tmp_path):
    for folder in tmp_path, tmp_path / "missing":
        with pytest.raises(UserError) as error:
            settings.read(folder)
        assert str(error.value) == f"{folder} holds no run to resume; expected a settings.json in it"
