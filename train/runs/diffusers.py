"""Our configs as `diffusers` writes them in `config.json`, and back.

What `diffusers` can be configured to and we cannot is listed with the one value that we do implement;
any other value, and any option that is not known here, is refused by its name.
"""

import math
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from diffusion.schedule import ScheduleConfig
from nets.condition import UserEncoderConfig
from nets.unet import UNetConfig
from nets.vae import VAEConfig
from train.base.errors import UserError
from train.base.files import read_json

UNET_ONLY = {
    "act_fn": "silu", "addition_embed_type": None, "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None, "attention_type": "default", "center_input_sample": False,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
    "downsample_padding": 1, "dropout": 0.0, "dual_cross_attention": False, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "flip_sin_to_cos": True, "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
    "num_attention_heads": None, "num_class_embeds": None, "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
    "transformer_layers_per_block": 1, "upcast_attention": False,
}  # fmt: skip
VAE_ONLY = {
    "act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
    "shift_factor": None,
}  # fmt: skip
SCHEDULE_ONLY = {
    "clip_sample": False, "thresholding": False, "trained_betas": None,
}  # fmt: skip
# Refused too, but not written: not every scheduler of `diffusers` knows them.
SCHEDULE_ONLY_READ = {"timestep_type": "discrete", "use_flow_sigmas": False}
# How to sample, which is ours to say (SamplingConfig), and limits of unused features.
SCHEDULE_IGNORED = {
    "algorithm_type", "clip_sample_range", "dynamic_thresholding_ratio", "euler_at_final",
    "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped", "lower_order_final",
    "sample_max_value", "set_alpha_to_one", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_type",
    "steps_offset", "time_shift_type", "timestep_spacing", "use_beta_sigmas", "use_dynamic_shifting",
    "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type",
}  # fmt: skip

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"noise": "epsilon", "x0": "sample", "velocity": "v_prediction"}


class Options:
    """The options of a `config.json`, each to be taken once; what is left at the end is not implemented."""

    def __init__(self, path: Path):
        self.path = path
        values = read_json(path)
        self.class_name = values.get("_class_name")
        self.values = {key: value for key, value in values.items() if not key.startswith("_")}

    def take(self, key: str, default, kind):
        """The option's value, a list as a tuple; UserError unless it is of the `kind`, an annotation."""
        value = self.values.pop(key, default)
        value = tuple(value) if isinstance(value, list) else value
        if not _is_a(kind, value):
            raise UserError(f"{self.path}: {key}={value!r} is not implemented here")
        return value

    def take_renamed(self, key: str, default: str, theirs: dict[str, str]) -> str:
        value = self.take(key, default, str)
        ours = {their: our for our, their in theirs.items()}
        if value not in ours:
            known = ", ".join(ours)
            raise UserError(f"{self.path}: {key}={value!r} is not implemented here (only {known} are)")
        return ours[value]

    def require(self, key: str, implemented) -> None:
        value = self.take(key, implemented, object)
        if value != implemented:
            raise UserError(f"{self.path}: {key}={value!r} is not implemented here (only {implemented!r} is)")

    def finish(self, implemented: dict) -> None:
        for key, value in implemented.items():
            self.require(key, value)
        for key, value in self.values.items():
            if value is not None:
                raise UserError(f"{self.path}: the option {key}={value!r} is not implemented here")


def _is_a(kind, value) -> bool:
    """Whether a value is what an annotation says: a type, a union, or tuple[T, ...]; True is not an int.

    JSON's numbers may be of any size, and NaN; here they must be of 64 bits, and finite.
    """
    if isinstance(kind, UnionType):
        return any(_is_a(arm, value) for arm in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(get_args(kind)[0], item) for item in value)
    if kind is object:
        return True
    if not math.isfinite(value) if type(value) is float else type(value) is int and abs(value) >= 2**63:
        return False
    return type(value) is kind or (kind is float and type(value) is int)


def unet_to_diffusers(config: UNetConfig) -> dict:
    attends = config.cross_attention
    return UNET_ONLY | {
        "sample_size": config.sample_size,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.num_heads,
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.norm_groups,
        "class_embed_type": "simple_projection" if config.condition_in_time_embedding else None,
        "projection_class_embeddings_input_dim": (
            config.cross_attention_dim if config.condition_in_time_embedding else None
        ),
    }


def unet_from_diffusers(options: Options) -> UNetConfig:
    down = options.take("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), tuple[str, ...])
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    for name in down:
        if name not in known:
            raise UserError(f"{options.path}: down_block_types holds {name}, which is not implemented here")
    attends = tuple(known[name] for name in down)
    mirrored = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends))
    options.require("up_block_types", mirrored)
    latent_channels = options.take("in_channels", 4, int)
    options.require("out_channels", latent_channels)
    cross_attention_dim = options.take("cross_attention_dim", 1280, int)
    class_embed_type = options.take("class_embed_type", None, object)
    if class_embed_type not in (None, "simple_projection"):
        raise UserError(f"{options.path}: class_embed_type={class_embed_type!r} is not implemented here")
    projected = cross_attention_dim if class_embed_type else None
    options.require("projection_class_embeddings_input_dim", projected)
    config = UNetConfig(
        channels=options.take("block_out_channels", (320, 640, 1280, 1280), tuple[int, ...]),
        cross_attention=attends,
        cross_attention_dim=cross_attention_dim,
        num_heads=options.take("attention_head_dim", 8, int | tuple[int, ...]),
        layers_per_block=options.take("layers_per_block", 2, int),
        linear_projection=options.take("use_linear_projection", False, bool),
        norm_groups=options.take("norm_num_groups", 32, int),
        latent_channels=latent_channels,
        condition_in_time_embedding=class_embed_type is not None,
        sample_size=options.take("sample_size", None, int | None),
    )
    options.finish(UNET_ONLY)
    return config


def vae_to_diffusers(config: VAEConfig) -> dict:
    levels = len(config.channels)
    return VAE_ONLY | {
        "sample_size": config.sample_size or 32 * config.downscale,  # `diffusers` divides by it: never null
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": config.channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv,
        "scaling_factor": config.scaling_factor,
        "force_upcast": True,
    }


def vae_from_diffusers(options: Options) -> VAEConfig:
    channels = options.take("block_out_channels", (64,), tuple[int, ...])
    options.require("down_block_types", ("DownEncoderBlock2D",) * len(channels))
    options.require("up_block_types", ("UpDecoderBlock2D",) * len(channels))
    image_channels = options.take("in_channels", 3, int)
    options.require("out_channels", image_channels)
    options.take("force_upcast", True, object)  # how to run it in half precision, not what it computes
    config = VAEConfig(
        channels=channels,
        layers_per_block=options.take("layers_per_block", 1, int),
        latent_channels=options.take("latent_channels", 4, int),
        image_channels=image_channels,
        norm_groups=options.take("norm_num_groups", 32, int),
        quant_conv=options.take("use_quant_conv", True, bool),
        post_quant_conv=options.take("use_post_quant_conv", True, bool),
        # Files of `diffusers` before 0.11 lack the factor, and mean Stable Diffusion's. Ours always have it.
        scaling_factor=options.take("scaling_factor", 0.18215, float | None),
        sample_size=options.take("sample_size", None, int | None),
    )
    options.finish(VAE_ONLY)
    return config


def encoder_to_json(config: UserEncoderConfig) -> dict:
    return dict(vars(config))


def encoder_from_json(options: Options) -> UserEncoderConfig:
    kinds = {"dim": int, "num_users": int, "tokens_per_user": int, "dropout": float}
    missing = [field for field in kinds if field not in options.values]
    if missing:
        raise UserError(f"{options.path}: {missing[0]} is missing")
    config = UserEncoderConfig(**{field: options.take(field, None, kind) for field, kind in kinds.items()})
    options.finish({})
    return config


def schedule_to_diffusers(config: ScheduleConfig) -> dict:
    return SCHEDULE_ONLY | {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": BETA_SCHEDULES[config.kind],
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "prediction_type": PREDICTIONS[config.prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 0,
    }


def schedule_from_diffusers(options: Options) -> ScheduleConfig:
    for key in SCHEDULE_IGNORED:
        options.take(key, None, object)
    config = ScheduleConfig(
        kind=options.take_renamed("beta_schedule", "linear", BETA_SCHEDULES),
        num_train_timesteps=options.take("num_train_timesteps", 1000, int),
        beta_start=options.take("beta_start", 0.0001, float),
        beta_end=options.take("beta_end", 0.02, float),
        zero_terminal_snr=options.take("rescale_betas_zero_snr", False, bool),
        prediction=options.take_renamed("prediction_type", "epsilon", PREDICTIONS),
    )
    options.finish(SCHEDULE_ONLY | SCHEDULE_ONLY_READ)
    return config
