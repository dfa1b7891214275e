"""A saved model is a folder of `diffusers`, in both directions; what we cannot read is refused by name."""

import copy
import inspect
import json
import os
from dataclasses import replace

import diffusers
import pytest
import torch

from diffusion.sampling import SamplingConfig
from diffusion.schedule import ScheduleConfig
from nets.condition import UserConditionEncoder, UserEncoderConfig
from nets.unet import UNet2DConditionModel, UNetConfig
from nets.vae import AutoencoderKL, VAEConfig
from tests.diffusion import test_oracle as schedules
from tests.float64 import float64
from tests.oracle import assert_equal_outputs, unet_pair, vae_pair
from train.base.errors import UserError
from train.runs import diffusers as diffusers_config
from train.runs import model_folder, weights
from train.runs.diffusers import Options, unet_from_diffusers, vae_from_diffusers
from train.runs.model_folder import load, load_schedule, save, save_schedule

UNET = UNetConfig((16, 32), (True, False), 12, num_heads=2, layers_per_block=1, norm_groups=4, sample_size=8)
UNETS = {
    "linear projections": UNET,
    "convolutional projections": replace(UNET, linear_projection=False),
    "heads per level": replace(UNET, num_heads=(2, 4)),
    "condition in the time embedding": replace(UNET, condition_in_time_embedding=True),
}
VAE = VAEConfig((8, 16), norm_groups=4, scaling_factor=0.7, sample_size=16)
VAES = {
    "colour": VAE,
    "grey": replace(VAE, image_channels=1),
    "no quant convolutions": replace(VAE, quant_conv=False, post_quant_conv=False),
    "scale not known yet": replace(VAE, scaling_factor=None),
}
ENCODER = UserEncoderConfig(dim=6, num_users=3, tokens_per_user=2, dropout=0.25)
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
}
SAFETENSORS, BIN = (f"diffusion_pytorch_model.{suffix}" for suffix in ("safetensors", "bin"))


@pytest.fixture(params=["safetensors", "bin"])
def weights_format(request, monkeypatch) -> str:
    """The file of weights that `save` writes: with the optional package, and without it."""
    if request.param == "bin":
        monkeypatch.setattr(weights, "safetensors", None)
    return request.param


@float64()
def unet_outputs(ours, theirs):
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    sample, context = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 12)
    labels = context.mean(dim=1) if ours.config.condition_in_time_embedding else None
    with torch.no_grad():
        return ours(sample, 40, context), theirs(sample, 40, context, class_labels=labels).sample


@float64()
def vae_outputs(ours, theirs):
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    x = torch.randn(2, ours.config.image_channels, 16, 16)
    with torch.no_grad():
        a, b = ours.encode(x), theirs.encode(x).latent_dist
        assert_equal_outputs(a.logvar, b.logvar)
        return ours.decode(a.mean), theirs.decode(b.mean).sample


def edit(folder, name="config.json", **changes) -> None:
    """Change keys of a JSON file; `...` removes one."""
    options = json.loads((folder / name).read_text()) | changes
    kept = {key: value for key, value in options.items() if value is not ...}
    (folder / name).write_text(json.dumps(kept))


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- both directions


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_saved_by_us_has_equal_outputs_in_diffusers(tmp_path, weights_format, name):
    ours, _ = unet_pair(UNETS[name])
    save(ours, tmp_path / "unet")
    written = sorted(path.name for path in (tmp_path / "unet").iterdir())
    assert written == ["config.json", f"diffusion_pytorch_model.{weights_format}"]
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    assert_equal_outputs(*unet_outputs(ours, theirs))


@pytest.mark.parametrize("name", VAES)
def test_a_vae_saved_by_us_opens_in_diffusers_with_equal_outputs(tmp_path, weights_format, name):
    ours, _ = vae_pair(VAES[name])
    save(ours, tmp_path)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert theirs.config.scaling_factor == ours.config.scaling_factor
    assert_equal_outputs(*vae_outputs(ours, theirs))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", UNETS)
def test_a_unet_saved_by_diffusers_opens_here_with_equal_outputs(tmp_path, safe, name):
    _, theirs = unet_pair(UNETS[name])
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    ours = load(tmp_path)
    assert ours.config == UNETS[name]
    assert_equal_outputs(*unet_outputs(ours, theirs))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", VAES)
def test_a_vae_saved_by_diffusers_opens_here_with_equal_outputs(tmp_path, safe, name):
    _, theirs = vae_pair(VAES[name])
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    ours = load(tmp_path)
    assert ours.config == VAES[name]
    assert_equal_outputs(*vae_outputs(ours, theirs))


def test_a_loaded_model_is_fp32_in_evaluation_mode_and_trainable(tmp_path):
    _, theirs = unet_pair(UNET)
    theirs.half().save_pretrained(tmp_path)
    ours = load(tmp_path, UNet2DConditionModel)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert not ours.training
    ours(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 2, 12)).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    torch.optim.SGD(ours.parameters(), lr=0.1).step()


def test_the_user_encoder_comes_back_as_it_was(tmp_path, weights_format):
    torch.manual_seed(0)
    encoder = UserConditionEncoder(ENCODER).eval()
    save(encoder, tmp_path)
    again = load(tmp_path, UserConditionEncoder)
    assert again.config == ENCODER
    users, dropped = torch.tensor([2, 0]), torch.tensor([False, True])
    assert torch.equal(again(users, dropped), encoder(users, dropped))


def test_saving_again_leaves_no_weights_of_the_model_before(tmp_path, monkeypatch):
    """Else the older file, where it is the preferred one, would be what is loaded."""
    first, second = UserConditionEncoder(ENCODER), UserConditionEncoder(ENCODER)
    save(first, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "safetensors", None)
        save(second, tmp_path)
    assert torch.equal(load(tmp_path).embedding.weight, second.embedding.weight)
    save(first, tmp_path)
    assert torch.equal(load(tmp_path).embedding.weight, first.embedding.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", SAFETENSORS]


def test_safetensors_are_preferred_only_if_the_package_is_there(tmp_path, monkeypatch):
    in_safetensors, in_bin = UserConditionEncoder(ENCODER), UserConditionEncoder(ENCODER)
    save(in_safetensors, tmp_path)
    torch.save(in_bin.state_dict(), tmp_path / BIN)
    assert torch.equal(load(tmp_path).embedding.weight, in_safetensors.embedding.weight)
    monkeypatch.setattr(weights, "safetensors", None)
    assert torch.equal(load(tmp_path).embedding.weight, in_bin.embedding.weight)
    (tmp_path / BIN).unlink()
    assert "pip install safetensors" in refused(load, tmp_path)


# ---- Stable Diffusion 1.5, whose config.json files are these

SD15_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.mark.parametrize(
    ("options", "read", "model", "parameters"),
    [
        (SD15_UNET, unet_from_diffusers, UNet2DConditionModel, 859_520_964),
        (SD15_VAE, vae_from_diffusers, AutoencoderKL, 83_653_863),
    ],
    ids=["unet", "vae"],
)
def test_the_configs_of_stable_diffusion_1_5_are_read(tmp_path, options, read, model, parameters):
    (tmp_path / "config.json").write_text(json.dumps(options))
    config = read(Options(tmp_path / "config.json"))
    with torch.device("meta"):
        assert sum(p.numel() for p in model(config).parameters()) == parameters
    if model is AutoencoderKL:
        assert config.scaling_factor == 0.18215  # which that file, older than the option, means
    else:
        assert (config.num_heads, config.linear_projection, config.sample_size) == (8, False, 64)


# ---- options


@pytest.mark.parametrize(
    ("theirs", "read"),
    [
        (diffusers.UNet2DConditionModel, unet_from_diffusers),
        (diffusers.AutoencoderKL, vae_from_diffusers),
    ],
)
def test_an_option_not_written_means_the_default_of_diffusers(tmp_path, theirs, read):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(theirs.__init__).parameters.items()
        if name not in ("self", "sample_size")
    }
    for name, options in (("none.json", {}), ("all.json", defaults)):
        (tmp_path / name).write_text(json.dumps(options))
    assert read(Options(tmp_path / "none.json")) == read(Options(tmp_path / "all.json"))


def test_every_option_of_diffusers_is_known():
    """A new release with a new option would fail here."""
    for theirs, ours in (
        (diffusers.UNet2DConditionModel, diffusers_config.unet_to_diffusers(UNET)),
        (diffusers.AutoencoderKL, diffusers_config.vae_to_diffusers(VAE)),
    ):
        assert set(inspect.signature(theirs.__init__).parameters) - {"self"} == set(ours)


LISTS = {
    "cross_attention_dim": 12, "layers_per_block": 1, "transformer_layers_per_block": 1, "attention_head_dim": 2,
    "only_cross_attention": False, "sample_size": 8, "upcast_attention": False,
}  # fmt: skip


@pytest.mark.parametrize("option", LISTS)
def test_a_list_of_equal_values_is_the_value(tmp_path, option):
    ours, _ = unet_pair(UNET)
    save(ours, tmp_path)
    edit(tmp_path, **{option: [LISTS[option]] * 2})
    assert load(tmp_path).config == UNET
    edit(tmp_path, **{option: [LISTS[option], "other"]})
    assert option in refused(load, tmp_path)


def test_lists_that_diffusers_opens_mean_the_same_here(tmp_path):
    _, theirs = unet_pair(replace(UNET, layers_per_block=2))
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, layers_per_block=[2, 2], cross_attention_dim=[12, 12], transformer_layers_per_block=[1, 1])
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    assert_equal_outputs(*unet_outputs(load(tmp_path), theirs))


def test_attention_upcast_by_diffusers_has_equal_outputs_here(tmp_path):
    _, theirs = unet_pair(UNET)
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, upcast_attention=True)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    assert theirs.config.upcast_attention
    assert_equal_outputs(*unet_outputs(load(tmp_path), theirs))


UNET_REFUSED = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_time_embed_dim": 256,
    "attention_head_dim": None,
    "attention_type": "gated",
    "block_out_channels": "wide",
    "center_input_sample": True,
    "class_embed_type": "timestep",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "cross_attention_dim": [12, 24],
    "cross_attention_norm": "layer_norm",
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "dropout": 0.1,
    "dual_cross_attention": True,
    "encoder_hid_dim": 8,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": [1, 2],
    "mid_block_only_cross_attention": True,
    "mid_block_scale_factor": 2,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "num_attention_heads": 8,
    "num_class_embeds": 10,
    "only_cross_attention": True,
    "out_channels": 8,
    "projection_class_embeddings_input_dim": 5,
    "resnet_out_scale_factor": 2.0,
    "resnet_skip_time_act": True,
    "resnet_time_scale_shift": "scale_shift",
    "reverse_transformer_layers_per_block": [1, 1],
    "sample_size": [8, 16],
    "time_cond_proj_dim": 4,
    "time_embedding_act_fn": "silu",
    "time_embedding_dim": 64,
    "time_embedding_type": "fourier",
    "timestep_post_act": "silu",
    "transformer_layers_per_block": [1, 2],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "use_linear_projection": None,
    "an_option_of_tomorrow": 1,
}
VAE_REFUSED = {
    "act_fn": "gelu",
    "block_out_channels": 8,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "latents_mean": [0.0, 0.0, 0.0, 0.0],
    "latents_std": [1.0, 1.0, 1.0, 1.0],
    "mid_block_add_attention": False,
    "out_channels": 1,
    "scaling_factor": "0.7",
    "shift_factor": 0.1,
    "up_block_types": ["UpDecoderBlock2D"],
    "use_quant_conv": "yes",
    "an_option_of_tomorrow": 1,
}
SCHEDULE_REFUSED = {
    "beta_schedule": "sigmoid",
    "beta_start": "small",
    "clip_sample": True,
    "num_train_timesteps": 1000.5,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": 1,
    "thresholding": True,
    "timestep_type": "continuous",
    "trained_betas": [0.1, 0.2],
    "use_flow_sigmas": True,
    "an_option_of_tomorrow": 1,
}
ENCODER_REFUSED = {"dim": "6", "dropout": None, "num_users": 3.5, "tokens_per_user": True, "extra": 1}


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [("unet", *item) for item in UNET_REFUSED.items()]
    + [("vae", *item) for item in VAE_REFUSED.items()]
    + [("encoder", *item) for item in ENCODER_REFUSED.items()]
    + [("schedule", *item) for item in SCHEDULE_REFUSED.items()],
)
def test_what_is_not_implemented_is_refused_by_its_name(tmp_path, kind, option, value):
    if kind == "schedule":
        save_schedule(ScheduleConfig(), tmp_path)
        edit(tmp_path, "scheduler_config.json", **{option: value})
        message = refused(load_schedule, tmp_path)
    else:
        to_json, config, name = {
            "unet": (diffusers_config.unet_to_diffusers, UNET, "UNet2DConditionModel"),
            "vae": (diffusers_config.vae_to_diffusers, VAE, "AutoencoderKL"),
            "encoder": (vars, ENCODER, "UserConditionEncoder"),
        }[kind]
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name} | to_json(config)))
        edit(tmp_path, **{option: value})
        message = refused(load, tmp_path)
    assert str(tmp_path) in message
    assert option in message
    assert "not implemented" in message


# ---- files that are not what they should be


@pytest.fixture
def saved(tmp_path):
    """The folder of a small VAE, with a .bin of weights."""
    save(vae_pair(VAE)[0], tmp_path)
    weights = load(tmp_path).state_dict()
    (tmp_path / SAFETENSORS).unlink()
    torch.save(weights, tmp_path / BIN)
    return tmp_path


def rewrite(folder, change) -> None:
    weights = torch.load(folder / BIN)
    change(weights)
    torch.save(weights, folder / BIN)


def test_weights_under_the_old_names_of_the_attention_load(saved):
    before = load(saved).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights):
        for key in list(weights):
            for new_name, old_name in old.items():
                if f"attentions.0.{new_name}." in key:
                    weights[key.replace(new_name, old_name)] = weights.pop(key)

    rewrite(saved, rename)
    assert sum(".query." in key for key in torch.load(saved / BIN)) == 4  # encoder and decoder
    after = load(saved).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_that_carry_code_are_refused_and_run_nothing(saved):
    proof = saved / "ran"
    rewrite(saved, lambda weights: weights.update(bomb=Bomb(proof)))
    assert BIN in refused(load, saved)
    assert not proof.exists()


@pytest.mark.parametrize("file", [BIN, SAFETENSORS])
@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_truncated_weights_are_refused_by_the_name_of_their_file(tmp_path, saved, file, kept):
    if file == SAFETENSORS:
        save(load(saved), saved)
    os.truncate(saved / file, kept if kept >= 0 else (saved / file).stat().st_size - 1)
    assert str(saved / file) in refused(load, saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("encoder.conv_in.bias"), "lacks encoder.conv_in.bias (1 such)"),
        (lambda w: w.update(extra=torch.zeros(1)), "has an unexpected extra (1 such)"),
        (lambda w: w.update({"encoder.conv_in.bias": torch.zeros(3)}), "conv_in.bias has shape (3,)"),
        (lambda w: w.update({"encoder.conv_in.bias": 3}), "encoder.conv_in.bias"),
        (lambda w: w.update({"encoder.conv_in.bias": {"a": torch.zeros(8)}}), "encoder.conv_in.bias"),
        (lambda w: w.update({7: torch.zeros(1)}), "7"),
        (lambda w: w.clear(), "lacks decoder.conv_in.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, change, words):
    rewrite(saved, change)
    message = refused(load, saved)
    assert str(saved / BIN) in message
    assert words in message


def test_weights_of_another_width_are_refused(saved):
    edit(saved, block_out_channels=[8, 32])
    assert "but the config.json beside means" in refused(load, saved)


def test_a_model_of_another_kind_is_refused_by_both_names(saved):
    message = refused(load, saved, UNet2DConditionModel)
    assert "holds a model AutoencoderKL where UNet2DConditionModel is needed" in message


@pytest.mark.parametrize("name", [..., None, "VQModel", "autoencoderkl", 3, ["AutoencoderKL"], {}])
def test_a_class_that_is_not_ours_is_refused(saved, name):
    edit(saved, _class_name=name)
    assert "it must be one of UNet2DConditionModel, AutoencoderKL" in refused(load, saved)


@pytest.mark.parametrize("key", ["dim", "num_users", "tokens_per_user", "dropout"])
def test_an_encoder_without_one_of_its_options_is_refused(tmp_path, key):
    save(UserConditionEncoder(ENCODER), tmp_path)
    edit(tmp_path, **{key: ...})
    assert f"{key} is missing" in refused(load, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": [9, 16]}, "channels 9 cannot be divided into 4 norm_groups"),
        ({"block_out_channels": []}, "at least 1"),
        ({"scaling_factor": -1}, "scaling_factor must be from 1e-6 to 1e6"),
        ({"in_channels": 2, "out_channels": 2}, "image_channels must be 1"),
    ],
)
def test_what_the_config_forbids_is_refused_by_its_files_name(saved, changes, words):
    levels = len(changes.get("block_out_channels", (8, 16)))
    down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
    edit(saved, **changes, down_block_types=down, up_block_types=up)
    message = refused(load, saved)
    assert words in message
    assert str(saved / "config.json") in message


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "null", "\xff\xfe", "[" * 100_000, '{"a": 1,}'])
def test_a_corrupt_config_is_refused_by_the_name_of_its_file(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    assert str(saved / "config.json") in refused(load, saved)


def test_a_folder_that_is_none_or_not_of_a_model_is_refused(tmp_path, saved):
    assert "no such file" in refused(load, tmp_path / "absent")
    assert "is a file" in refused(load, saved / BIN)
    (saved / BIN).unlink()
    assert "holds neither" in refused(load, saved)


def test_a_folder_with_only_a_variant_of_weights_is_refused(saved):
    (saved / BIN).rename(saved / "diffusion_pytorch_model.fp16.safetensors")
    message = refused(load, saved)
    assert message.endswith(f"nor {BIN}; copy diffusion_pytorch_model.fp16.safetensors to {SAFETENSORS}")


# ---- schedules


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize(
    ("sampler", "config"),
    [
        (sampler, config)
        for sampler in SCHEDULERS
        for config in (
            ScheduleConfig(),
            ScheduleConfig("linear", 500, 0.0002, 0.03, prediction="x0"),
            ScheduleConfig("cosine", prediction="velocity"),
            ScheduleConfig(zero_terminal_snr=True, prediction="velocity"),
        )
        # The Heun of `diffusers` cannot start near zero SNR.
        if sampler != "heun" or not (config.kind == "cosine" or config.zero_terminal_snr)
    ],
)
@float64()
def test_a_schedule_saved_by_us_samples_the_same_in_diffusers(tmp_path, monkeypatch, sampler, config):
    save_schedule(config, tmp_path / "scheduler")
    theirs = SCHEDULERS[sampler].from_pretrained(tmp_path, subfolder="scheduler")
    assert theirs.config.timestep_spacing == "trailing"
    monkeypatch.setattr(schedules, "make_oracle", lambda *_: theirs)
    schedules.assert_same_trajectory(config, SamplingConfig(sampler, 20, "trailing"))


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_a_schedule_saved_by_diffusers_opens_here(tmp_path, sampler):
    scheduler = SCHEDULERS[sampler](
        num_train_timesteps=400,
        beta_schedule="scaled_linear",
        beta_start=0.001,
        beta_end=0.02,
        prediction_type="v_prediction",
        **({"clip_sample": False} if sampler in ("ddim", "ddpm") else {}),
    )
    scheduler.save_pretrained(tmp_path)
    assert load_schedule(tmp_path) == ScheduleConfig("scaled_linear", 400, 0.001, 0.02, prediction="velocity")


def with_betas() -> dict[str, dict]:
    """The defaults of every scheduler of `diffusers` that has a noise schedule of betas, as ours has."""
    signatures = {name: inspect.signature(getattr(diffusers, name).__init__).parameters
                  for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")}  # fmt: skip
    return {
        name: {key: option.default for key, option in options.items() if key != "self"}
        for name, options in signatures.items()
        if "beta_schedule" in options
    }


def read_schedule(folder, **options) -> ScheduleConfig | str:
    (folder / "scheduler_config.json").write_text(json.dumps(options))
    try:
        return load_schedule(folder)
    except UserError as error:
        return str(error)


def test_an_option_left_out_means_what_its_scheduler_means(tmp_path):
    """A DDIMScheduler without clip_sample clips; a HeunDiscreteScheduler without betas has those of its own."""
    known = {"beta_start", "beta_end", "beta_schedule", "clip_sample", "num_train_timesteps", "prediction_type",
             "rescale_betas_zero_snr", "thresholding", "trained_betas"}  # fmt: skip
    for name, defaults in with_betas().items():
        defaults = {key: value for key, value in defaults.items() if key in known}
        left_out = read_schedule(tmp_path, _class_name=name)
        written = read_schedule(tmp_path, _class_name=name, **defaults)
        refused_alike = isinstance(left_out, str) and f"which {name} means where it is left out" in left_out
        assert left_out == written or (refused_alike and isinstance(written, str)), name
        assert defaults.get("clip_sample") is not True or refused_alike, name


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "Mine", 3, ["DDIMScheduler"]])
def test_a_scheduler_of_another_kind_of_noise_is_refused(tmp_path, name):
    assert "whose noise schedule is not implemented here" in read_schedule(tmp_path, _class_name=name)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["x0", "velocity"])
def test_a_schedule_comes_back_as_it_was(tmp_path, kind, prediction):
    config = ScheduleConfig(kind, 77, 0.01, 0.02, zero_terminal_snr=True, prediction=prediction)
    save_schedule(config, tmp_path)
    assert load_schedule(tmp_path) == config


def test_the_scheduler_config_of_stable_diffusion_1_5_opens_here(tmp_path):
    published = {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None, "clip_sample": False,
    }  # fmt: skip
    (tmp_path / "scheduler_config.json").write_text(json.dumps(published))
    assert load_schedule(tmp_path) == ScheduleConfig("scaled_linear", 1000, 0.00085, 0.012, prediction="noise")


@pytest.mark.parametrize("value", [float("nan"), -1e6])
def test_spoilt_weights_are_neither_saved_nor_loaded(tmp_path, monkeypatch, value):
    torch.manual_seed(0)
    vae = AutoencoderKL(VAE)
    with torch.no_grad():
        vae.decoder.conv_out.bias[1] = value
    with pytest.raises(UserError, match=r"decoder\.conv_out\.bias holds .*; such a model is not saved$"):
        save(vae, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "what_is_wrong", lambda _: "")
        save(vae, tmp_path / "model")
    with pytest.raises(UserError, match=r"model\.safetensors: decoder\.conv_out\.bias holds .*; use an earlier model$"):
        load(tmp_path / "model")
