"""Train the VAE: `python -m train.vae --config configs/demo.yaml`.

Ends with `final_model/`: the averaged weights, the scale of the latents over the training images, the split.
Shapes: B batch, I image channels, H W image, Z h w latents.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nets.checkpointing import set_checkpointing
from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL
from train.base import processes as parallel
from train.base.randomness import generator, window_rows
from train.config import cli
from train.config.schema import Config
from train.data.dataset import UserImages, draw_flips, load_images, to_uint8
from train.data.latents import measure_scaling, save_statistics
from train.data.split import Split, evenly, fingerprint, save_split
from train.engine.device import MixedPrecision, autocast, grad_scaler, native_precision, pick_device
from train.engine.ema import EMA
from train.engine.micro_batch import MicroBatch
from train.engine.optim import learning_rate, make_adamw, set_learning_rate
from train.engine.step import StepResult, optimizer_step
from train.engine.trainer import Best, resume, total_steps, train
from train.memory.scenario import Setting
from train.memory.verify import watched
from train.runs import model_folder as pretrained
from train.runs.checkpoint import Unchanged
from train.runs.folder import SPLIT, locked, open_run, refuse_other_run, save_config, shared_split
from train.runs.pictures import PICTURE_BATCH, image_grid, save_picture, user_labels
from train.stages.preflight import load_fitting_vae, plan_micro_batch, require_disk
from train.stages.vae_loss import Adversary, load_vgg16, vae_losses

VALIDATION_IMAGES = 256
GRID_IMAGES = 8


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("vae", __doc__.splitlines()[0], "vae")
    args = parser.parse_args(argv)
    config = cli.read_config(args, "vae")
    training = config.vae_training
    folder = Path(training.output_dir)
    device = pick_device()
    precision = native_precision(device, training.mixed_precision)
    parallel.on_main(lambda: refuse_other_run(folder, config, "vae"))
    data = load_images(config.data)
    torch.manual_seed(generator(config.seed, "weights", 0).initial_seed())
    vae = initial_vae(config)
    planned = replace(config, vae=vae.config)
    micro_batch = MicroBatch(training, plan_micro_batch(planned, "vae", len(data.user_names), device))
    vae = vae.to(device)  # after the plan, which looks at a card that is still empty
    vgg16 = load_vgg16(config.vae_loss.perceptual_weights).to(device) if config.vae_loss.perceptual_weight else None
    adversary = (
        Adversary(data.images.shape[1], config.vae_loss, training.optimizer, device, precision)
        if config.vae_loss.adversarial_weight
        else None
    )
    split = parallel.on_main(lambda: shared_split(data, config.data, folder))
    require_disk(training, vae, adversary and adversary.discriminator)
    with locked(folder):
        averaged = train_vae(config, folder, device, precision, micro_batch, vae, vgg16, adversary, data, split)
        parallel.on_main(lambda: finish(averaged, config, folder, device, data, split))


def initial_vae(config: Config) -> AutoencoderKL:
    """What training starts from: given weights, or those that the seed draws."""
    path = config.latents.vae_path
    vae = load_fitting_vae(Path(path), config).train() if path else AutoencoderKL(config.vae)
    vae.config = replace(vae.config, sample_size=config.data.resolution)
    return vae


def train_vae(
    config: Config, folder: Path, device: torch.device, precision: MixedPrecision, micro_batch: MicroBatch,
    vae: AutoencoderKL, vgg16: VGG16Distance | None, adversary: Adversary | None, data: UserImages, split: Split,
) -> AutoencoderKL:  # fmt: skip
    """Train, or go on training; the averaged model."""
    training = config.vae_training
    set_checkpointing(vae, training.gradient_checkpointing)
    ema = EMA(vae, training.ema_decay, training.ema_on_cpu)
    optimizer = make_adamw(vae.parameters(), training.optimizer, training.shard_optimizer)
    everyone = parallel.add_gradients(vae.parameters())
    scaler = grad_scaler(device, precision)
    half = partial(autocast, device, precision)
    steps = total_steps(len(split.train), training)

    def take_step(step: int) -> StepResult:
        rows = split.train[window_rows(config.seed, step, len(split.train), training.window)]
        draws = generator(config.seed, "draws", step)
        images = data.batch(rows, *draw_flips(len(rows), config.data, draws)).to(device)
        side = config.data.resolution // vae.config.downscale
        noise = torch.randn(len(rows), vae.config.latent_channels, side, side, generator=draws).to(device)
        judge = adversary if step >= config.vae_loss.adversarial_start else None

        def losses(part: slice) -> dict[str, Tensor]:
            return vae_losses(vae, images[part], noise[part], config.vae_loss, vgg16, judge, scaler.get_scale())

        def attempt(size: int) -> StepResult:
            if judge:
                judge.begin_window()
            return optimizer_step(
                losses, len(rows), size, list(vae.parameters()), optimizer, scaler, half,
                training.optimizer.max_grad_norm, everyone,
            )  # fmt: skip

        rate = learning_rate(training.optimizer, step, steps)
        set_learning_rate(optimizer, rate)
        result = micro_batch.fitting(attempt)
        if result.taken:
            ema.update(vae)
        if judge and result.taken:
            set_learning_rate(judge.optimizer, rate)
            result.losses.update(micro_batch.fitting(lambda size: judge.finish_window(images, size, half)))
        return result

    def validate(step: int) -> dict[str, float]:
        picture = folder / f"reconstructions/{step:08d}.png"
        with ema.averaged(vae) as averaged:
            return write_reconstructions(averaged, data, split.validation, picture, device)

    def begin() -> None:
        open_run(folder, config, "vae")
        save_split(folder / SPLIT, split, data, config.data)

    best = Best("validation_psnr", max)
    inputs = Unchanged(data=fingerprint(data, split))
    state = {"inputs": inputs, "vae": vae, "ema": ema, "optimizer": optimizer, "scaler": scaler,
             "micro_batch": micro_batch, "best": best}  # fmt: skip
    if adversary:
        state["adversary"] = adversary
    step = resume(training, steps, state)
    parallel.on_main(begin)  # only now that nothing is refused any more
    curves = ("loss", "reconstruction", "validation_psnr")
    setting = Setting(replace(config, vae=vae.config), "vae")
    setting = setting.with_training(mixed_precision=precision)  # as it is computed here
    setting = setting.of_one_process(parallel.world_size(), micro_batch.size)
    average = None if training.ema_on_cpu else ema.model
    models = [model for model in (vae, average, vgg16, adversary and adversary.discriminator) if model]
    optimizers = [optimizer, adversary.optimizer] if adversary else [optimizer]
    take_step = watched(take_step, setting, device, models, optimizers)
    train("VAE", training, steps, step, state, take_step, validate, best, curves, device)
    return ema.model.to(device)


def finish(
    vae: AutoencoderKL, config: Config, folder: Path, device: torch.device, data: UserImages, split: Split
) -> None:
    """Measure the scale of the latents, write `final_model/`, and say how good it is."""
    final = folder / "final_model"
    statistics = measure_scaling(vae, data, split.train, device)
    vae.config = replace(vae.config, scaling_factor=statistics["scaling_factor"])
    save_split(final / "split.json", split, data, config.data)
    save_statistics(statistics, final)
    save_config(config, final)
    pretrained.save(vae, final)  # last: its config.json says that the folder is whole
    metrics = write_reconstructions(vae, data, split.validation, folder / "reconstructions.png", device)
    print(
        f"VAE: validation PSNR {metrics['validation_psnr']:.2f} dB, scaling factor {statistics['scaling_factor']:.4f} "
        f"over {statistics['images']} images; model in {final}, pictures in {folder}/reconstructions.png"
    )


@torch.no_grad()
def write_reconstructions(
    vae: AutoencoderKL, data: UserImages, rows: Tensor, path: Path, device: torch.device
) -> dict[str, float]:
    """PSNR in dB over (at most 256 of) the images `rows`, and a picture of some: above, and below as decoded."""
    rows = evenly(rows, VALIDATION_IMAGES)
    batches = (data.batch(batch).to(device) for batch in rows.split(PICTURE_BATCH))
    decoded = torch.cat([to_uint8(vae.decode(vae.encode(x).mode())).cpu() for x in batches])
    error = (decoded.double() - data.images[rows].double()).square().flatten(1).mean(1)  # B
    psnr = 10 * torch.log10(255**2 / error.clamp(min=1e-10))
    shown = evenly(torch.arange(len(rows)), GRID_IMAGES)
    pairs = [("image", list(data.images[rows[shown]])), ("decoded", list(decoded[shown]))]
    labels = user_labels(data.user_names)
    save_picture(image_grid(pairs, [labels[user] for user in data.user_index[rows[shown]].tolist()]), path)
    return {"validation_psnr": float(psnr.mean())}


if __name__ == "__main__":
    cli.run(main)
