"""folder.py, unet_config.py, scheduler_config.py, json_options.py: which files make a model, and what their options mean."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

import minddpm
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.model import Model
from minddpm.storage import scheduler_config, unet_config
from minddpm.storage.folder import WEIGHTS, find, flat, nested
from minddpm.unet import UNetConfig, init

NESTED = {"unet": "unet/config.json", "weights": f"unet/{WEIGHTS}", "scheduler": "scheduler/scheduler_config.json"}
CFG = UNetConfig(8, 1, (8, 16), 1, (1,), groups=4)

# The folders on the hub, as their files read.
CIFAR10 = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}
IMAGE256 = CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4}
SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
    "variance_type": "fixed_large"}


@pytest.fixture
def folder(tmp_path):
    """A model's folder, as save writes it."""
    minddpm.save(tmp_path / "model", Model(CFG, init(CFG, 0), Schedule.linear()))
    return tmp_path / "model"


def make_flat(folder):
    """The same files as on the hub: all in one folder."""
    for path in NESTED.values():
        shutil.move(folder / path, folder / path.split("/")[1])
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()


# ---- folders --------------------------------------------------------------------------------------------------------

def test_nested_and_flat(folder):
    before = minddpm.load(folder)
    assert find(folder) == nested(folder)
    make_flat(folder)
    assert find(folder) == flat(folder)
    after = minddpm.load(folder)
    assert after.config == before.config
    assert np.array_equal(after.params["conv_in"]["weight"], before.params["conv_in"]["weight"])


def test_a_folder_in_the_hubs_cache(folder, tmp_path):
    """snapshots/REVISION/ holds links into ../../blobs/: how most people have these weights."""
    repository = tmp_path / "models--google--ddpm-cifar10-32"
    snapshot, blobs = repository / "snapshots" / "267b167dc01f", repository / "blobs"
    blobs.mkdir(parents=True)
    make_flat(folder)
    snapshot.mkdir(parents=True)
    for k, path in enumerate(sorted(folder.iterdir())):
        shutil.move(path, blobs / str(k))
        (snapshot / path.name).symlink_to(f"../../blobs/{k}")
    assert minddpm.load(snapshot).config == CFG


@pytest.mark.parametrize("name", ["model_index.json", *NESTED.values()])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        minddpm.load(folder)


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_a_linked_subfolder_is_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        minddpm.load(folder)


def test_links_within_the_folder_and_to_the_folder_are_followed(folder, tmp_path):
    shutil.move(folder / NESTED["weights"], folder / "weights")
    (folder / NESTED["weights"]).symlink_to("../weights")
    (tmp_path / "link").symlink_to(folder)
    assert minddpm.load(tmp_path / "link").config == CFG


@pytest.mark.parametrize("name", ["model_index.json", *NESTED.values()])
@pytest.mark.parametrize("what", ["missing", "folder", "loop", "dangling", "fifo", "empty"])
def test_a_file_that_is_none(folder, name, what):
    path = folder / name
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    with pytest.raises(UserError) as refused:
        minddpm.load(folder)
    assert path.name in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("what", ["no such folder", "a file"])
def test_no_folder(tmp_path, what):
    path = tmp_path / "model"
    if what == "a file":
        path.touch()
    with pytest.raises(UserError, match="is not a folder"):
        minddpm.load(path)


def test_another_pipeline_is_refused(folder):
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="StableDiffusionPipeline"):
        minddpm.load(folder)


def test_pickled_weights_are_refused(folder):
    make_flat(folder)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"is a pickle, .* convert it to .*safetensors with diffusers .*save_pretrained"):
        minddpm.load(folder)


def test_weights_in_other_files_are_named(folder):
    for name in "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-00001-of-00002.safetensors":
        (folder / "unet" / name).touch()
    (folder / NESTED["weights"]).unlink()
    with pytest.raises(UserError, match="all weights in this one file, found diffusion_pytorch_model-00001-of-00002"):
        minddpm.load(folder)


# ---- the network's options ------------------------------------------------------------------------------------------

def test_the_papers_networks():
    assert unet_config.from_json(CIFAR10) == replace(UNetConfig.cifar10(), dropout=0.0)
    assert unet_config.from_json(IMAGE256) == UNetConfig.image256()


@pytest.mark.parametrize("cfg", [
    UNetConfig.tiny(3), UNetConfig.small(), UNetConfig.medium(), UNetConfig.cifar10(), UNetConfig.image256(1),
    UNetConfig(12, 2, (8, 24, 16), 3, (), dropout=0.5, groups=8, eps=1e-5, learned_sigma=True),
    UNetConfig(8, 1, (8, 16), 1, (0,), groups=4, attention_up=(1,)),
    UNetConfig(8, 1, (8, 16), 1, (0, 1), groups=4, attention_up=()),
])
def test_network_to_json_and_back(cfg):
    assert unet_config.from_json(json.loads(json.dumps(unet_config.to_json(cfg)))) == cfg


def test_what_newer_versions_add_is_understood():
    more = dict(add_attention=True, attn_norm_num_groups=None, class_embed_type=None, downsample_type="conv",
                upsample_type="conv", dropout=0.0, num_class_embeds=None, num_train_timesteps=None,
                resnet_time_scale_shift="default", mid_block_type="UNetMidBlock2D", time_embedding_dim=None,
                _name_or_path="google/ddpm-cifar10-32")
    assert unet_config.from_json(CIFAR10 | more) == unet_config.from_json(CIFAR10)


@pytest.mark.parametrize("heads, fits", [(None, True), (256, True), (8, False), (128, False), ([256], False), (True, False)])
def test_heads(heads, fits):
    """attention_head_dim is a head's channels: 256 is one head at every attention of CIFAR-10's network."""
    if fits:
        assert unet_config.from_json(CIFAR10 | {"attention_head_dim": heads}) == unet_config.from_json(CIFAR10)
    else:
        with pytest.raises(UserError, match="attention_head_dim"):
            unet_config.from_json(CIFAR10 | {"attention_head_dim": heads})


@pytest.mark.parametrize("attending, head", [("down", 128), ("down", 256), ("up", 128), ("up", 256)])
def test_one_head_everywhere_is_as_wide_as_every_level_with_attention(attending, head):
    """The middle block's has 256 channels, too."""
    options = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}
    options |= ({"down_block_types": ["AttnDownBlock2D"] + ["DownBlock2D"] * 3} if attending == "down" else
                {"up_block_types": ["UpBlock2D"] * 3 + ["AttnUpBlock2D"]})
    unet_config.from_json(CIFAR10 | options)
    with pytest.raises(UserError, match=f"attention_head_dim is {head}; expected null"):
        unet_config.from_json(CIFAR10 | options | {"attention_head_dim": head})


@pytest.mark.parametrize("option, value", [
    ("act_fn", "mish"), ("downsample_padding", 1), ("flip_sin_to_cos", True), ("freq_shift", 0), ("center_input_sample", True),
    ("time_embedding_type", "fourier"), ("mid_block_scale_factor", 2), ("add_attention", False), ("class_embed_type", "identity"),
    ("num_class_embeds", 10), ("resnet_time_scale_shift", "scale_shift"), ("downsample_type", "resnet"), ("mid_block_type", None),
    ("cross_attention_dim", 768), ("a_new_option", {"of": ["any", "kind"]}), ("act_fn", "x" * 10**6),
    ("out_channels", 4), ("sample_size", None), ("sample_size", [32, 64]), ("sample_size", 33), ("sample_size", 2**40),
    ("in_channels", 0), ("in_channels", 3.0), ("block_out_channels", []), ("block_out_channels", 128),
    ("block_out_channels", [128, 256, 256, -1]), ("block_out_channels", [2**40] * 4), ("block_out_channels", ["128"] * 4),
    ("layers_per_block", 101), ("layers_per_block", True), ("norm_num_groups", None), ("norm_num_groups", 33),
    ("norm_eps", "small"), ("norm_eps", float("nan")), ("norm_eps", float("inf")), ("dropout", 1.0), ("dropout", float("nan")),
    ("down_block_types", ["DownBlock2D"] * 3), ("down_block_types", "DownBlock2D"), ("down_block_types", [[]] * 4),
    ("down_block_types", ["DownBlock2D"] * 3 + ["SkipDownBlock2D"]), ("up_block_types", None), ("_class_name", "UNet1DModel"),
    ("_class_name", None),
])
def test_a_network_that_we_do_not_have_is_refused_by_name(option, value):
    with pytest.raises(UserError) as refused:
        unet_config.from_json(CIFAR10 | {option: value}, "unet/config.json")
    message = str(refused.value)
    assert message.startswith("unet/config.json") and "\n" not in message and len(message) < 400
    assert option == "_class_name" or option in message or option in ("norm_num_groups", "sample_size") and str(value) in message


@pytest.mark.parametrize("option", ["downsample_padding", "flip_sin_to_cos", "freq_shift", "attention_head_dim"])
def test_an_option_left_out_has_diffusers_default_not_ours(option):
    with pytest.raises(UserError, match=f"{option} is .*diffusers' default, as the file leaves it out"):
        unet_config.from_json({k: v for k, v in CIFAR10.items() if k != option})


def test_sizes_left_out_have_diffusers_defaults():
    attending = UNetConfig(32, 3, (128, 256, 256, 256), 2, (1,), eps=1e-6)
    for option, expected in dict(
            in_channels=attending, out_channels=attending, layers_per_block=attending, norm_num_groups=attending,
            dropout=attending, norm_eps=replace(attending, eps=1e-5),
            block_out_channels=replace(attending, widths=(224, 448, 672, 896)),
            down_block_types=replace(attending, attention=(1, 2, 3), attention_up=(1,)),
            up_block_types=replace(attending, attention_up=(1, 2, 3))).items():
        assert unet_config.from_json({k: v for k, v in CIFAR10.items() if k != option}) == expected
    with pytest.raises(UserError, match="sample_size is null, diffusers' default, as the file leaves it out; expected a whole"):
        unet_config.from_json({k: v for k, v in CIFAR10.items() if k != "sample_size"})


# ---- the scheduler's options ----------------------------------------------------------------------------------------

def read(**options):
    return scheduler_config.from_json(SCHEDULER | options, "scheduler_config.json")


def test_schedulers_of_the_hub():
    s, *rest = read()
    assert np.array_equal(s.beta, Schedule.linear().beta) and rest == ["beta", True, "eps"]
    assert read(variance_type="fixed_small").sigma2 == "beta_tilde"


def test_newer_options_are_understood():
    new = read(clip_sample_range=1.0, dynamic_thresholding_ratio=0.995, prediction_type="epsilon", rescale_betas_zero_snr=False,
               sample_max_value=1.0, steps_offset=0, thresholding=False, timestep_spacing="leading")
    assert np.array_equal(new.schedule.beta, read().schedule.beta) and new[1:] == read()[1:]


def test_older_schedulers_are_understood():
    old = {"_class_name": "GaussianDDPMScheduler", "timesteps": 500, "beta_start": 0.0001, "beta_end": 0.02,
           "beta_schedule": "linear", "variance_type": "fixed_large", "clip_predicted_image": False, "trained_betas": None,
           "timestep_values": None, "tensor_format": "pt"}
    s, *rest = scheduler_config.from_json(old)
    assert np.array_equal(s.beta, Schedule.linear(500).beta) and rest == ["beta", False, "eps"]


def test_scheduler_options_left_out_have_diffusers_defaults():
    s, *rest = scheduler_config.from_json({"_class_name": "DDPMScheduler", "predict_epsilon": True})
    assert np.array_equal(s.beta, Schedule.linear(1000, 1e-4, 0.02).beta) and rest == ["beta_tilde", True, "eps"]


@pytest.mark.parametrize("sigma2, clip, predicts", [("beta", True, "eps"), ("beta_tilde", False, "eps"), ("beta", True, "x0"),
                                                    ("learned", True, "mu")])
@pytest.mark.parametrize("s, kind", [
    (Schedule.linear(), "linear"), (Schedule.linear(7, 0.1, 0.3), "linear"), (Schedule.linear(1), "linear"),
    (Schedule.constant(50), "linear"), (Schedule.quadratic(), "scaled_linear"), (Schedule(np.linspace(0, .5, 30)**3), None)])
def test_scheduler_to_json_and_back(s, kind, sigma2, clip, predicts):
    config = scheduler_config.to_json(Model(CFG, {}, s, sigma2, clip, predicts))
    assert config["beta_schedule"] == (kind or "linear") and (config["trained_betas"] is None) == (kind is not None)
    back = scheduler_config.from_json(json.loads(json.dumps(config)))
    np.testing.assert_allclose(back.schedule.beta, s.beta, rtol=1e-14)
    assert back[1:] == (sigma2, clip, predicts)
    if kind != "scaled_linear":
        assert np.array_equal(back.schedule.beta, s.beta)


@pytest.mark.parametrize("option, value", [
    ("prediction_type", "v_prediction"), ("predict_epsilon", False), ("variance_type", "learned"),
    ("variance_type", "learned_range"), ("variance_type", "fixed_small_log"), ("variance_type", None), ("variance_type", []),
    ("beta_schedule", "squaredcos_cap_v2"), ("beta_schedule", {}), ("thresholding", True), ("clip_sample_range", 2.0),
    ("rescale_betas_zero_snr", True), ("steps_offset", 1), ("set_alpha_to_one", True), ("clip_sample", "false"),
    ("clip_sample", 0), ("num_train_timesteps", 0), ("num_train_timesteps", 10**12), ("num_train_timesteps", "1000"),
    ("beta_start", "0.1"), ("beta_start", float("nan")), ("beta_start", 0), ("beta_end", 1), ("beta_end", -1e300),
    ("trained_betas", [0.1, 0.2]), ("trained_betas", [2.0] * 1000), ("trained_betas", [None] * 1000),
    ("trained_betas", [[0.1]] * 1000), ("trained_betas", "0.1"), ("trained_betas", [10**400] * 1000),
    ("timestep_values", [1, 2]), ("_class_name", "DDIMScheduler"), ("_class_name", None),
])
def test_a_scheduler_that_we_do_not_have_is_refused_by_name(option, value):
    with pytest.raises(UserError) as refused:
        read(**{option: value})
    message = str(refused.value)
    assert message.startswith("scheduler_config.json") and "\n" not in message and len(message) < 400
    assert option == "_class_name" or option in message or option == "trained_betas" and "beta" in message
