"""Before any training: do VAE, UNet, user encoder, data and device fit together? `python -m train.check`

One line for each question; the exit status is 1 if the answer to any is no.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from nets.vae import AutoencoderKL
from train.base.errors import UserError
from train.config import cli
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.data.dataset import UserImages, load_images
from train.data.latents import latent_shape, require_sane_latents
from train.data.pictures import place_of
from train.data.split import Split
from train.engine.device import pick_device
from train.engine.micro_batch import MicroBatch
from train.engine.precision import native_precision
from train.engine.step import mean_losses
from train.engine.trainer import Trainer
from train.memory.fit import plan_micro_batch
from train.runs.checkpoint import require_disk
from train.runs.folder import locked, refuse_other_run
from train.runs.generated import refuse_within
from train.stages.beginning import open_beginning
from train.stages.ldm import LDMStage, naming_the_own_vae, open_vae, require_users, split_for, vae_folder

T = TypeVar("T")


class Checks:
    """Prints a line for each check, and keeps what came of it: "ok", "FAIL" or "skip"."""

    def __init__(self):
        self.outcomes: dict[str, str] = {}

    def __call__(self, name: str, check: Callable[..., tuple[T, str]], *needed: object) -> T | None:
        """What the check found; None where it fails, or where one that it needs has failed."""
        found, outcome, sentence = None, "skip", "needs what failed above"
        if all(fact is not None for fact in needed):
            try:
                (found, sentence), outcome = check(*needed), "ok"
            except (UserError, OSError, RuntimeError, MemoryError) as error:
                outcome, sentence = "FAIL", cli.in_a_sentence(error)
                if not sentence:
                    raise
        self.outcomes[name] = outcome
        print(f"{outcome:4}  {name}: {sentence}")
        return found


def main(argv: list[str] | None = None) -> int:
    parser = cli.make_parser("check", __doc__, "ldm")
    cli.add_flags(parser, cli.BEGINNING)
    config = cli.read_config(parser.parse_args(argv), "ldm", more=cli.BEGINNING)
    check = Checks()
    # All that can be checked without data was checked when the config was read.
    width = f"context width {config.unet.cross_attention_dim}"
    check("config", lambda: (config, f"UNet and user encoder both have {width}"))
    device, precision = check("device", check_device, config) or (None, None)
    run = check("run", check_run, config)
    data = check("data", check_data, config)
    split = check("split", check_split, config, data)
    vae = check("VAE", check_vae, config, device)
    sane = check("latents", check_latents, config, vae, data, split, device)
    stage = check("models", check_models, config, data, split, vae, sane, device, precision)
    check("training step", check_step, stage)
    check("disk", check_disk, stage)
    check("checkpoint", check_checkpoint, stage, run)
    failed, skipped = ([name for name, found in check.outcomes.items() if found == what] for what in ("FAIL", "skip"))
    more = f"; {len(skipped)} skipped" if skipped else ""
    said = f"{len(failed)} of {len(check.outcomes)} failed: {', '.join(failed)}{more}"
    print(said if failed else "everything fits together")
    return 1 if failed else 0


# Each check returns what later ones need, and a phrase for its line; it raises UserError where the answer is no.


def check_device(config: Config) -> tuple[tuple[torch.device, MixedPrecision], str]:
    device = pick_device()
    precision = native_precision(device, config.ldm_training.mixed_precision)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no CUDA card, so the CPU"
    return (device, precision), f"{name}; mixed precision {precision}"


def check_run(config: Config) -> tuple[Path, str]:
    """What is in the run's folder already; nobody else trains in it just now."""
    folder = Path(config.ldm_training.output_dir)
    differing = refuse_other_run(folder, config, "ldm")
    if not folder.exists():
        return folder, f"{folder}, a new one"
    with locked(folder):
        return folder, f"{folder}, {'; '.join(differing) or 'of this config'}"


def check_data(config: Config) -> tuple[UserImages, str]:
    data = load_images(config.data)
    require_users(config, data)
    shape = "x".join(map(str, data.images.shape[1:]))
    decoded = f"{shape}, decoded in {place_of(Path(config.data.dir), config.data)}"
    return data, f"{len(data)} images of {len(data.user_names)} users in {config.data.dir}, {decoded}"


def check_split(config: Config, data: UserImages) -> tuple[Split, str]:
    split = split_for(config, data)
    by = f"by recording ({config.data.pattern})" if config.data.pattern else "by file"
    return split, f"{split}, {by}"


def check_vae(config: Config, device: torch.device) -> tuple[AutoencoderKL, str]:
    vae = open_vae(config).to(device)
    meant = replace(config.vae, scaling_factor=vae.config.scaling_factor, sample_size=vae.config.sample_size)
    other = "" if vae.config == meant else "; not as the config's section vae has it, which does not matter any more"
    return vae, f"{vae_folder(config)}, scaling factor {vae.config.scaling_factor:.4f}{other}"


def check_latents(
    config: Config, vae: AutoencoderKL, data: UserImages, split: Split, device: torch.device
) -> tuple[float, str]:
    """Encode a few images, and look at the scale of their latents."""
    with naming_the_own_vae(config):
        std = require_sane_latents(vae, data, split.train, device)
    shape = "x".join(map(str, latent_shape(vae, data)))
    return std, f"{shape}, standard deviation {std:.2f} when scaled"


def check_models(
    config: Config, data: UserImages, split: Split, vae: AutoencoderKL, sane: float, device: torch.device,
    precision: MixedPrecision,
) -> tuple[LDMStage, str]:  # fmt: skip
    stage = LDMStage(config, data, vae, open_beginning(config, vae))
    stage.split = split
    plan_micro_batch(stage.actual_config, stage.name, len(data.user_names), device)
    stage.build(device, precision)
    if config.latents.cache_latents:  # blank ones, so that a step needs what a step of the training needs
        stage.use_latents(torch.zeros(1, 2, *stage.source.shape))
    unet, encoder = (sum(p.numel() for p in m.parameters()) for m in (stage.model.unet, stage.model.user_encoder))
    side = stage.source.shape[-1]
    begun = f"; {stage.begun}" if stage.begun else ""
    return stage, f"UNet of {unet:,} parameters for {side}x{side} latents, user encoder of {encoder:,}{begun}"


def check_step(stage: LDMStage) -> tuple[bool, str]:
    """One training step at the configured precision and batch size; the models are thrown away."""
    images, learner = stage.training.batch_size, stage.learner
    batch = stage.draw(0, torch.zeros(images, dtype=torch.int64))
    totals = learner.accumulate(partial(stage.losses, batch), images, images)
    grad_norm, loss = learner.clip(), mean_losses(totals)["loss"]
    learner.step(loss, grad_norm)
    return True, f"{images} images forward and backward, loss {loss:.3f}"


def check_disk(stage: LDMStage) -> tuple[bool, str]:
    refuse_within(Path(stage.config.data.dir), Path(stage.training.output_dir))
    return True, require_disk(stage.training, stage.model)


def check_checkpoint(stage: LDMStage, run: Path) -> tuple[int, str]:
    """Whether the training can go on from what is there: it has this model, this VAE and these images."""
    trainer = Trainer(stage, MicroBatch(stage.training, stage.training.batch_size), stage.device)
    trainer.resume()
    return trainer.step, f"goes on after step {trainer.step:,} of {trainer.total_steps:,}, in {run}"


if __name__ == "__main__":
    cli.run(main)
