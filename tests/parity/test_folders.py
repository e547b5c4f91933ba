"""Folders: what diffusers saves minddpm loads, and what minddpm saves diffusers opens and samples from, tensor for tensor."""

import inspect
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from oracle import (
    DDPMPipeline,
    DDPMScheduler,
    UNet2DModel,
    cifar10,
    image256,
    make,
    nchw,
    nhwc,
    randomize,
    relative,
    to_ours,
    torch,
)
from safetensors.numpy import load_file, save_file

import minddpm
from minddpm import tree
from minddpm.app import cli, loop, run
from minddpm.app.settings import Settings
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.model import Model
from minddpm.storage import scheduler_config, unet_config
from minddpm.unet import UNetConfig, init

NETWORKS = {
    "1 channel": lambda: make((8, 16), "-A", "A-", 1, 4, 1, 8),
    "3 channels, 3 layers": lambda: make((8, 16, 16), "A--", "-A-", 3, 8, 3, 8),
    "attention down only": lambda: make((8, 16), "A-", "--", 2, 4, 3, 8),
    "CIFAR-10 at full size": cifar10,
    "256x256": image256,
}
slow = [pytest.param(build, id=name, marks=[pytest.mark.slow] if build in (cifar10, image256) else [])
        for name, build in NETWORKS.items()]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_theirs(folder, unet, **scheduler):
    DDPMPipeline(unet, DDPMScheduler(**{"variance_type": "fixed_large"} | scheduler)).save_pretrained(folder)
    return folder


def opened(folder):
    pipe = DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same_tensors(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def same_arrays(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def sample_of(pipe, steps=3):
    return pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np").images


@pytest.mark.parametrize("build", slow)
def test_diffusers_to_minddpm_to_diffusers(tmp_path, build):
    theirs = randomize(build(), 0)
    model = minddpm.load(save_theirs(tmp_path / "theirs", theirs, variance_type="fixed_small", clip_sample=False))
    assert (model.sigma2, model.clip, model.predicts, model.schedule.T) == ("beta_tilde", False, "eps", 1000)
    minddpm.save(tmp_path / "ours", model)
    back = opened(tmp_path / "ours")
    same_tensors(theirs.state_dict(), back.unet.state_dict())
    assert back.scheduler.config.variance_type == "fixed_small" and back.scheduler.config.clip_sample is False
    before = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    after = {k: v for k, v in back.unet.config.items() if not k.startswith("_")}
    assert json.dumps(before) == json.dumps(after)
    raw = load_file(tmp_path / "ours" / "unet" / WEIGHTS)
    assert all(a.dtype == np.float32 for a in raw.values())


@pytest.mark.parametrize("cfg", [
    UNetConfig.tiny(1),
    UNetConfig(8, 3, (8, 16), 2, (0,), groups=4, eps=1e-5, dropout=0.25),
    pytest.param(UNetConfig.cifar10(), marks=pytest.mark.slow),
], ids=["tiny", "odd", "cifar10"])
def test_minddpm_to_diffusers_to_minddpm(tmp_path, cfg):
    params = init(cfg, 3)
    minddpm.save(tmp_path / "ours", Model(cfg, params, Schedule.linear(), "beta"))
    opened(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    model = minddpm.load(tmp_path / "theirs")
    assert model.config == cfg and (model.sigma2, model.clip) == ("beta", True)
    assert np.array_equal(model.schedule.beta, Schedule.linear().beta)
    same_arrays(params, model.params)


def test_both_compute_the_same_from_one_folder(tmp_path):
    theirs = randomize(make((8, 16), "-A", "A-", 2, 4, 3, 8), 1)
    model = minddpm.load(save_theirs(tmp_path, theirs))
    x, t = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32), np.array([1, 400, 1000])
    with torch.no_grad():
        expected = nhwc(theirs(nchw(x), torch.from_numpy(t - 1)).sample)
    assert relative(model.eps_theta(x, t), expected) < 1e-5


def flatten(folder):
    """save_pretrained's folder -> the layout of google/ddpm-cifar10-32."""
    shutil.move(folder / "unet" / "config.json", folder / "config.json")
    shutil.move(folder / "unet" / WEIGHTS, folder / WEIGHTS)
    shutil.move(folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    return folder


def test_flat_folder_opens_in_both(tmp_path):
    theirs = randomize(make((8, 16), "-A", "A-", 1, 4, 3, 8), 2)
    folder = flatten(save_theirs(tmp_path, theirs))
    same_tensors(opened(folder).unet.state_dict(), theirs.state_dict())
    ours = to_ours(theirs.state_dict())
    loaded = minddpm.load(folder).params
    same_arrays(ours, loaded)


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_the_command_line_samples_from_their_folders(tmp_path, layout, capsys):
    folder = save_theirs(tmp_path / "theirs", randomize(make((8, 16), "-A", "A-", 1, 4, 3, 8), 2).half(), num_train_timesteps=20)
    if layout == "flat":
        flatten(folder)
    assert cli.main(["sample", str(folder), "-n", "3", "--npz", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (3, 8, 8, 3)


def test_old_attention_names_open_in_both(tmp_path):
    theirs = randomize(make((8, 16), "-A", "A-", 1, 4, 3, 8), 3)
    save_theirs(tmp_path, theirs)
    path = tmp_path / "unet" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, a in load_file(path).items():
        for now, then in old.items():
            name = name.replace(f".{now}.", f".{then}.")
        renamed[name] = a
    save_file(renamed, path, {"format": "pt"})
    assert sum("proj_attn" in name for name in renamed) == 2 * 4          # mid, down.1 and up.0's two
    same_tensors(opened(tmp_path).unet.state_dict(), theirs.state_dict())
    ours, loaded = to_ours(theirs.state_dict()), minddpm.load(tmp_path).params
    same_arrays(ours, loaded)


def test_pickled_weights_are_refused_with_a_line_that_converts_them(tmp_path):
    theirs = randomize(make((8, 16), "-A", "A-", 1, 4, 3, 8), 4)
    folder = tmp_path / "a 'model'"
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(folder, safe_serialization=False)
    with pytest.raises(UserError, match="pickle") as refused:
        minddpm.load(folder)
    line = str(refused.value).split("torch: ")[1].replace("python", sys.executable, 1)
    subprocess.run(line, shell=True, check=True, capture_output=True)
    model = minddpm.load(f"{folder}-safetensors")
    assert np.array_equal(model.params["conv_in"]["bias"], theirs.conv_in.bias.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, dtype, caplog):
    theirs = randomize(make((8, 16), "-A", "A-", 1, 4, 3, 8), 5).to(dtype)
    model = minddpm.load(save_theirs(tmp_path, theirs))
    assert "used as float32" in caplog.text
    expected = to_ours({name: p.float() for name, p in theirs.state_dict().items()})
    same_arrays(expected, model.params)


@pytest.mark.parametrize("option", [
    {"act_fn": "gelu"}, {"attention_head_dim": 4}, {"downsample_padding": 1}, {"flip_sin_to_cos": True}, {"freq_shift": 0},
    {"time_embedding_type": "fourier"}, {"resnet_time_scale_shift": "scale_shift"}, {"add_attention": False},
    {"mid_block_scale_factor": 2}, {"center_input_sample": True}, {"class_embed_type": "timestep"}, {"num_class_embeds": 3},
    {"downsample_type": "resnet"}, {"upsample_type": "resnet"}, {"attn_norm_num_groups": 8}, {"time_embedding_dim": 64},
], ids=str)
def test_every_other_network_of_theirs_is_refused_by_name(tmp_path, option):
    save_theirs(tmp_path, make((8, 16), "-A", "A-", 1, 4, 3, 8, **option))
    with pytest.raises(UserError, match=next(iter(option))):
        minddpm.load(tmp_path)


@pytest.mark.parametrize("option", [
    {"prediction_type": "v_prediction"}, {"variance_type": "learned_range"}, {"variance_type": "fixed_small_log"},
    {"beta_schedule": "squaredcos_cap_v2"}, {"thresholding": True}, {"clip_sample_range": 2.0}, {"steps_offset": 1},
    {"rescale_betas_zero_snr": True},
], ids=str)
def test_every_other_scheduler_of_theirs_is_refused_by_name(tmp_path, option):
    save_theirs(tmp_path, make((8, 16), "-A", "A-", 1, 4, 3, 8), **option)
    with pytest.raises(UserError, match=next(iter(option))):
        minddpm.load(tmp_path)


def test_our_tables_are_their_options_and_defaults():
    """So that a new version of diffusers with a new option or default is noticed here."""
    model = Model(UNetConfig.tiny(), {}, Schedule.linear())
    for theirs, ours, written in ((UNet2DModel, unet_config.DEFAULTS, unet_config.to_json(model.config)),
                                  (DDPMScheduler, scheduler_config.DEFAULTS, scheduler_config.to_json(model))):
        options = {name: p.default for name, p in inspect.signature(theirs.__init__).parameters.items() if name != "self"}
        assert ours == {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        assert written.keys() == options.keys() | {"_class_name", "_diffusers_version"}


def test_a_network_with_all_their_defaults_is_refused(tmp_path):
    save_theirs(tmp_path, UNet2DModel(sample_size=16, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                                      up_block_types=("UpBlock2D",) * 2))
    with pytest.raises(UserError, match="attention_head_dim is 8; expected null"):
        minddpm.load(tmp_path)


def test_a_training_run_opens_and_samples(tmp_path):
    settings = Settings(data="digits", preset="tiny", steps=3, batch=4, save_every=2, sample_every=0, ema=0.5)
    trained = run.begin(tmp_path / "run", settings)
    assert loop.train(trained)
    check_run(tmp_path / "run", trained.state.ema)


@pytest.mark.parametrize("cfg, how", [
    (UNetConfig(8, 3, (8, 16), 1, (), groups=4), {"predicts": "mu"}),
    (UNetConfig(8, 3, (8, 16), 1, (), groups=4, learned_sigma=True), {"sigma2": "learned"}),
    (UNetConfig(8, 1, (8, 16), 1, (), groups=4, learned_sigma=True), {"sigma2": "learned"}),
], ids=["mu", "learned", "learned, 1 channel"])
def test_what_diffusers_cannot_sample_it_opens_and_refuses(tmp_path, cfg, how):
    """Table 2's other two parametrizations have no name in diffusers: better an error there than samples of another model."""
    minddpm.save(tmp_path, Model(cfg, init(cfg, 0), Schedule.linear(), **how))
    pipe = opened(tmp_path)
    with pytest.raises((ValueError, RuntimeError)):
        sample_of(pipe)


def check_run(folder, ema=None):
    pipe = opened(folder)
    model = minddpm.load(folder)
    same_arrays(to_ours(pipe.unet.state_dict()), model.params)
    if ema is not None:
        same_arrays(ema, model.params)
    images = sample_of(pipe)
    assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_run_interrupted_mid_training_opens_and_samples(tmp_path, how):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "import sys; from minddpm.app.cli import main; sys.exit(main())"]
    process = subprocess.Popen(command + ["train", "--data", "digits", "--preset", "tiny", "--batch", "4", "--save-every", "1",
                                          "--sample-every", "0", "--steps", "100000", "--out", str(folder)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (folder / "model_index.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert (folder / "model_index.json").exists(), errors.decode()
    check_run(folder)
