"""The sections of a config on data, training and the VAE's loss; the others are defined beside what they configure."""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.sampling import SamplingConfig
from train.base.errors import UserError, require
from train.base.names import PathText
from train.base.randomness import steps_per_epoch

MixedPrecision = Literal["no", "fp16", "bf16"]
MAX_RESOLUTION = 8192  # pixels; more is a typing error
BUILT_IN, BUILT_IN_RECORDING = "data/simulated", r"^(rec\d+)_"  # made by `make data`


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, the size at which models see them, and how they are split (train/data/split.py)."""

    dir: PathText = BUILT_IN
    resolution: int = 128
    """Pixels, height and width."""
    channels: Literal[1, 3] = 3
    recording_pattern: str | None = None
    """A regular expression on a file's name; its group 1, or its match, names the recording; see `pattern`."""
    recordings_per_user: int | None = None
    """How many recordings of each user train, if there are more; the others are held out. None: see the next."""
    validation_fraction: float = 0.1
    """Share of each user's training images that validates, and without recordings_per_user of recordings held out."""
    horizontal_flip: bool = False
    """Augmentation by flips left to right, which reverse time in a spectrogram."""
    vertical_flip: bool = False
    """Augmentation by flips top to bottom, which reverse the sign of Doppler in a spectrogram."""
    seed: int = 0
    """Seed of the split."""

    @property
    def pattern(self) -> str | None:
        """recording_pattern, or the built-in data set's own; None where each file is a recording."""
        built_in = Path(os.path.abspath(self.dir)).match(BUILT_IN)  # compares the end of the path only
        return self.recording_pattern or (BUILT_IN_RECORDING if built_in else None)

    def __post_init__(self) -> None:
        require(self.dir, "dir is empty; give the folder that holds a folder of images per user")
        require(8 <= self.resolution <= MAX_RESOLUTION,
                f"resolution must be at least 8 and at most {MAX_RESOLUTION}, not {self.resolution}")
        require(self.channels in (1, 3), f"channels must be 1 or 3, not {self.channels}")
        require(self.recordings_per_user is None or self.recordings_per_user >= 1,
                f"recordings_per_user must be at least 1, or null, not {self.recordings_per_user}")
        require(0 < self.validation_fraction < 1,
                f"validation_fraction must lie between 0 and 1, not {self.validation_fraction}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # of syntax whose meaning in re will change
                re.compile(self.recording_pattern or "")
        except (re.error, OverflowError, RecursionError, FutureWarning) as error:
            wrong = f"recording_pattern {self.recording_pattern!r} is no regular expression"
            raise UserError(f"{wrong}: {str(error) or type(error).__name__}") from None


@dataclass(frozen=True)
class LatentsConfig:
    vae_path: PathText | None = None
    """Folder of a trained VAE; None: `final_model` in vae_training.output_dir."""
    cache_latents: bool = True
    """Encode every image once, before training, instead of in each step."""

    def __post_init__(self) -> None:
        require(self.vae_path != "", "vae_path is empty; give the folder of a VAE, or null")


@dataclass(frozen=True)
class VAELossConfig:
    reconstruction: Literal["l1", "l2"] = "l1"
    border_weight: float = 4.0
    """Weight of a pixel at the border, and root of that of one in a corner, over one inside; 1 is the plain mean."""
    kl_weight: float = 1e-6
    """Weight of the mean KL per latent component; the mean error per pixel value has weight 1."""
    spectral_weight: float = 0.0
    """Weight of the difference of local spectra, which keeps the power of textures that latents cannot describe."""
    perceptual_weight: float = 0.0
    perceptual_weights: PathText | None = None
    """A file of torchvision's VGG16 weights (`vgg16-397923af.pth`), needed for a perceptual_weight."""
    adversarial_weight: float = 0.0
    """Factor on the adversarial term's adaptive weight; 0 trains without a discriminator."""
    adversarial_start: int = 0
    """Optimizer step from which the discriminator learns and the VAE tries to fool it."""

    def __post_init__(self) -> None:
        least = min(self.kl_weight, self.perceptual_weight, self.adversarial_weight, self.adversarial_start)
        require(least >= 0,
                "kl_weight, perceptual_weight, adversarial_weight and adversarial_start must not be negative")
        require(self.border_weight > 0, f"border_weight must be positive, not {self.border_weight}")
        require(not self.perceptual_weight or self.perceptual_weights is not None,
                "perceptual_weight needs perceptual_weights, the path of a VGG16 weights file")


@dataclass(frozen=True)
class OptimConfig:
    learning_rate: float = 1e-4
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or half a cosine that reaches zero at the last step."""
    warmup_steps: int = 500
    """Optimizer steps in which the learning rate rises from zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    fused: bool = True
    """AdamW's fused kernel, which is faster and needs no temporaries as large as the gradients."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0 and self.max_grad_norm > 0, "learning_rate and max_grad_norm must be positive")
        require(self.learning_rate <= 10,  # 1e4 is a typing error for 1e-4
                f"learning_rate must be at most 10, not {self.learning_rate}")
        require(min(self.warmup_steps, self.weight_decay) >= 0, "warmup_steps and weight_decay must not be negative")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas must be in [0, 1), not {self.betas}")


@dataclass(frozen=True)
class TrainingConfig:
    output_dir: PathText
    batch_size: int
    """Images that go through the model at once (the micro-batch), in each process."""
    num_epochs: int | None = None
    """The training's length in passes over the training images, or, without it:"""
    num_steps: int | None = None
    """The length in optimizer steps, whatever the number of images."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one optimizer step."""
    auto_batch: bool = False
    """Choose the micro-batch by the GPU's memory, and halve it when it does not fit; a step stays the same."""
    mixed_precision: MixedPrecision = "no"
    lean_activations: bool = True
    """Make what is cheap again in the backward pass: the same gradients, a quarter of the memory; of time 2% (VAE) to
    10% (UNet) more."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """Compile the model's blocks with torch.compile, in the first steps; a GPU needs compute capability 7.0 for it."""
    ema_decay: float = 0.9999
    ema_on_cpu: bool = False
    """Keep the moving average in the CPU's memory, to which every step copies the weights."""
    sample_interval: int = 1000
    """Optimizer steps between validations with pictures."""
    save_interval: int = 1000
    """Optimizer steps between checkpoints; one is saved every ten minutes as well."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints are kept; the best is kept as well."""
    max_hours: float | None = None
    """Hours from the first step after which the run saves and stops; started again, it goes on."""
    shard_optimizer: bool = False
    """Divide the optimizer's state among the processes of torchrun; a single process keeps all of it."""
    optimizer: OptimConfig = OptimConfig()

    @property
    def images_per_step(self) -> int:
        """Images in the batch of one optimizer step, in all processes together."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def length_key(self) -> str:
        """The key that says how long the training is."""
        return "num_epochs" if self.num_steps is None else "num_steps"

    def total_steps(self, images: int) -> int:
        """Optimizer steps of the whole training on this many images."""
        return self.num_steps or self.num_epochs * steps_per_epoch(images, self.images_per_step)

    def __post_init__(self) -> None:
        lengths = (self.num_epochs, self.num_steps)
        require(any(length is not None for length in lengths), "num_epochs or num_steps must be set")
        require(None in lengths, "num_epochs is {} and num_steps {}; set only one of them".format(*lengths))
        for name in (self.length_key, "batch_size", "gradient_accumulation_steps", "sample_interval", "save_interval",
                     "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), not {self.ema_decay}")
        require(self.max_hours is None or self.max_hours > 0, f"max_hours must be positive, not {self.max_hours}")


@dataclass(frozen=True)
class LDMTrainingConfig(TrainingConfig):
    init_from: PathText | None = None
    """`final_model` or a checkpoint of another LDM run, with whose weights a new run begins; null: with random ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init_from != "", "init_from is empty; give the final_model or a checkpoint of an LDM, or null")


@dataclass(frozen=True)
class GenerationConfig(SamplingConfig):
    """How images are sampled, and how many at once."""

    batch_size: int = 8
    """Images that go through the model at once; the number changes them by rounding only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")
