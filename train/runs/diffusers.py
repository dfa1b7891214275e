"""Our configs to and from those that `diffusers` writes in `config.json`.

Options that only `diffusers` has are listed with the one value that we implement; all else is refused by name.
"""

import math
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from diffusion.schedule import ScheduleConfig
from nets.condition import UserEncoderConfig
from nets.unet import UNetConfig
from nets.vae import VAEConfig
from train.base.errors import require
from train.base.files import read_json

# Options of `diffusers` in the order in which they are written: our field's name, the default there, what it may be.
Fields = dict[str, tuple[str | None, Any, Any]]
COMPUTED = (None, None, None)  # follows from our fields in another way than by their names
UNET: Fields = {
    "sample_size": ("sample_size", None, int | None),
    "in_channels": ("latent_channels", 4, int),
    "out_channels": COMPUTED,
    "block_out_channels": ("channels", (320, 640, 1280, 1280), tuple[int, ...]),
    "down_block_types": COMPUTED,
    "up_block_types": COMPUTED,
    "layers_per_block": ("layers_per_block", 2, int),
    "attention_head_dim": ("num_heads", 8, int | tuple[int, ...]),
    "cross_attention_dim": ("cross_attention_dim", 1280, int),
    "use_linear_projection": ("linear_projection", False, bool),
    "norm_num_groups": ("norm_groups", 32, int),
    "class_embed_type": COMPUTED,
    "projection_class_embeddings_input_dim": COMPUTED,
    "upcast_attention": COMPUTED,
}
VAE: Fields = {
    "sample_size": ("sample_size", None, int | None),
    "in_channels": ("image_channels", 3, int),
    "out_channels": COMPUTED,
    "latent_channels": ("latent_channels", 4, int),
    "block_out_channels": ("channels", (64,), tuple[int, ...]),
    "down_block_types": COMPUTED,
    "up_block_types": COMPUTED,
    "layers_per_block": ("layers_per_block", 1, int),
    "norm_num_groups": ("norm_groups", 32, int),
    "use_quant_conv": ("quant_conv", True, bool),
    "use_post_quant_conv": ("post_quant_conv", True, bool),
    # Files of `diffusers` before 0.11 lack the factor and mean that of Stable Diffusion; ours always have it.
    "scaling_factor": ("scaling_factor", 0.18215, float | None),
    "force_upcast": COMPUTED,
}
SCHEDULE: Fields = {
    "num_train_timesteps": ("num_train_timesteps", 1000, int),
    "beta_schedule": COMPUTED,
    "beta_start": ("beta_start", 0.0001, float),
    "beta_end": ("beta_end", 0.02, float),
    "rescale_betas_zero_snr": ("zero_terminal_snr", False, bool),
    "prediction_type": COMPUTED,
    "timestep_spacing": COMPUTED,
    "steps_offset": COMPUTED,
}
ENCODER: Fields = {
    name: (name, None, kind)
    for name, kind in (("dim", int), ("num_users", int), ("tokens_per_user", int), ("dropout", float))
}
UNET_ONLY = {
    "act_fn": "silu", "addition_embed_type": None, "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None, "attention_type": "default", "center_input_sample": False,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
    "downsample_padding": 1, "dropout": 0.0, "dual_cross_attention": False, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
    "num_attention_heads": None, "num_class_embeds": None, "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}  # fmt: skip
VAE_ONLY = {
    "act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
    "shift_factor": None,
}  # fmt: skip
SCHEDULE_ONLY = {"clip_sample": False, "thresholding": False, "trained_betas": None}
# Other values are refused too, but these are not written: not every scheduler of `diffusers` knows them.
SCHEDULE_ONLY_READ = {"timestep_type": "discrete", "use_flow_sigmas": False}
# How to sample, which SamplingConfig says here, and limits of unused features.
SCHEDULE_IGNORED = {
    "algorithm_type", "clip_sample_range", "dynamic_thresholding_ratio", "euler_at_final",
    "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped", "lower_order_final",
    "sample_max_value", "set_alpha_to_one", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_type",
    "steps_offset", "time_shift_type", "timestep_spacing", "use_beta_sigmas", "use_dynamic_shifting",
    "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type",
}  # fmt: skip

# The schedulers of `diffusers` whose files are read, by what their options mean where they are left out, if it is not
# what SCHEDULE says. Others have other noise schedules.
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str | None, dict] = {
    None: {},
    **{f"{name}Scheduler": {} for name in (
        "DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep",
        "EulerAncestralDiscrete", "EulerDiscrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep")},
    **{f"{name}Scheduler": {"clip_sample": True} for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "RePaint")},
    **{f"{name}Scheduler": STABLE_DIFFUSION for name in (
        "DPMSolverSDE", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")},
    **{f"{name}Scheduler": STABLE_DIFFUSION | {"beta_schedule": "scaled_linear"} for name in ("LCM", "TCD")},
    **{f"{name}Scheduler": STABLE_DIFFUSION | {"beta_schedule": "scaled_linear", "clip_sample": True} for name in (
        "CogVideoXDDIM", "CogVideoXDPM")},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True},
}  # fmt: skip

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"noise": "epsilon", "x0": "sample", "velocity": "v_prediction"}


class Options:
    """The options of a `config.json`. Each is taken once; what is left at the end is not implemented."""

    def __init__(self, path: Path):
        self.path = path
        values = read_json(path)
        self.class_name = values.get("_class_name")
        self.values = {key: value for key, value in values.items() if not key.startswith("_")}
        self.implied: set[str] = set()

    def take(self, key: str, default, kind):
        """The option's value, a list as a tuple; UserError unless it is of the annotation `kind`.

        A list of equal values, one for each level or side, is the value where the option takes one.
        """
        value = self.values.pop(key, default)
        if isinstance(value, list):
            first, *others = value or [None]
            same = value and _is_a(kind, first) and all(type(item) is type(first) and item == first for item in others)
            value = first if same else tuple(value)
        require(_is_a(kind, value), f"{self.path}: {self._shown(key, value)} is not implemented here")
        return value

    def imply(self, defaults: dict) -> None:
        """What options that are left out mean, where it depends on the class that the file is of."""
        self.implied = defaults.keys() - self.values.keys()
        self.values = defaults | self.values

    def _shown(self, key: str, value: object) -> str:
        implied = f", which {self.class_name} means where it is left out," if key in self.implied else ""
        return f"{key}={value!r}{implied}"

    def take_fields(self, fields: Fields) -> dict:
        return {ours: self.take(option, *wanted) for option, (ours, *wanted) in fields.items() if ours}

    def take_renamed(self, key: str, default: str, theirs: dict[str, str]) -> str:
        """Our name of the option's value; `theirs` maps our names to those of `diffusers`."""
        value = self.take(key, default, str)
        ours = {their: our for our, their in theirs.items()}
        require(value in ours, f"{self.path}: {key}={value!r} is not implemented here (only {', '.join(ours)} are)")
        return ours[value]

    def take_only(self, key: str, implemented) -> None:
        """Take an option for which only this value is implemented."""
        value = self.take(key, implemented, tuple[object, ...] if isinstance(implemented, tuple) else object)
        only = f"{self.path}: {self._shown(key, value)} is not implemented here (only {implemented!r} is)"
        require(value == implemented, only)

    def finish(self, implemented: dict) -> None:
        """Take the options for which one value is implemented, and refuse all that are left."""
        for key, value in implemented.items():
            self.take_only(key, value)
        for key, value in self.values.items():
            require(value is None, f"{self.path}: the option {key}={value!r} is not implemented here")


def _is_a(kind, value) -> bool:
    """Whether a value is of an annotation: a type, a union, or tuple[T, ...]; True is not an int.

    Numbers in JSON may be of any size, or NaN; here integers must have at most 64 bits, and floats be finite.
    """
    if isinstance(kind, UnionType):
        return any(_is_a(arm, value) for arm in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(get_args(kind)[0], item) for item in value)
    if type(value) in (int, float) and kind is not object:
        in_range = math.isfinite(value) if type(value) is float else abs(value) < 2**63
        return in_range and kind in (type(value), float)
    return kind in (type(value), object)


def _written(config, fields: Fields, **derived) -> dict:
    return {key: derived[key] if key in derived else getattr(config, ours) for key, (ours, _, _) in fields.items()}


def unet_to_diffusers(config: UNetConfig) -> dict:
    attends, embeds = config.cross_attention, config.condition_in_time_embedding
    return UNET_ONLY | _written(
        config, UNET,
        out_channels=config.latent_channels,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        class_embed_type="simple_projection" if embeds else None,
        projection_class_embeddings_input_dim=config.cross_attention_dim if embeds else None,
        upcast_attention=False,
    )  # fmt: skip


def unet_from_diffusers(options: Options) -> UNetConfig:
    # The way down says which levels have cross-attention, and the way up must mirror it.
    down = options.take("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), tuple[str, ...])
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    for name in down:
        require(name in known, f"{options.path}: down_block_types holds {name}, which is not implemented here")
    attends = tuple(known[name] for name in down)
    options.take_only("up_block_types", tuple(name.replace("Down", "Up") for name in reversed(down)))
    values = options.take_fields(UNET)
    options.take_only("out_channels", values["latent_channels"])
    embedding, path = options.take("class_embed_type", None, object), options.path
    implemented = embedding in (None, "simple_projection")
    require(implemented, f"{path}: class_embed_type={embedding!r} is not implemented here")
    options.take_only("projection_class_embeddings_input_dim", values["cross_attention_dim"] if embedding else None)
    options.take("upcast_attention", False, bool)  # concerns half precision, not what is computed
    config = UNetConfig(**values, cross_attention=attends, condition_in_time_embedding=embedding is not None)
    options.finish(UNET_ONLY)
    return config


def vae_to_diffusers(config: VAEConfig) -> dict:
    levels = len(config.channels)
    return VAE_ONLY | _written(
        config, VAE,
        sample_size=config.sample_size or 32 * config.downscale,  # not null: `diffusers` divides by it
        out_channels=config.image_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        force_upcast=True,
    )  # fmt: skip


def vae_from_diffusers(options: Options) -> VAEConfig:
    values = options.take_fields(VAE)
    options.take_only("down_block_types", ("DownEncoderBlock2D",) * len(values["channels"]))
    options.take_only("up_block_types", ("UpDecoderBlock2D",) * len(values["channels"]))
    options.take_only("out_channels", values["image_channels"])
    options.take("force_upcast", True, object)  # concerns half precision, not what is computed
    config = VAEConfig(**values)
    options.finish(VAE_ONLY)
    return config


def encoder_from_json(options: Options) -> UserEncoderConfig:
    for field in ENCODER:
        require(field in options.values, f"{options.path}: {field} is missing")
    config = UserEncoderConfig(**options.take_fields(ENCODER))
    options.finish({})
    return config


def schedule_to_diffusers(config: ScheduleConfig) -> dict:
    return SCHEDULE_ONLY | _written(
        config, SCHEDULE,
        beta_schedule=BETA_SCHEDULES[config.kind],
        prediction_type=PREDICTIONS[config.prediction],
        timestep_spacing="trailing",
        steps_offset=0,
    )  # fmt: skip


def schedule_from_diffusers(options: Options) -> ScheduleConfig:
    name = options.class_name
    known = (name is None or isinstance(name, str)) and name in SCHEDULERS
    require(known, f"{options.path}: _class_name is {name!r}, whose noise schedule is not implemented here")
    options.imply(SCHEDULERS[name])
    for key in SCHEDULE_IGNORED:
        options.take(key, None, object)
    config = ScheduleConfig(
        kind=options.take_renamed("beta_schedule", "linear", BETA_SCHEDULES),
        prediction=options.take_renamed("prediction_type", "epsilon", PREDICTIONS),
        **options.take_fields(SCHEDULE),
    )
    options.finish(SCHEDULE_ONLY | SCHEDULE_ONLY_READ)
    return config
