"""Generate images of users: `python -m train.sample --model runs/demo/ldm/final_model --users ID1 ID5 --seed 42`.

Writes `USER/generated_000.png`, ... and `grid.png`. The same model, settings and seed give the same images.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.sampling import SamplingConfig
from diffusion.schedule import Schedule, make_schedule
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train import cli, pretrained
from train.config import Config
from train.data import read_image
from train.denoising import UserDenoiser
from train.device import pick_device
from train.errors import UserError, nearest
from train.files import read_json, tensors_hash, write_json
from train.generate import generate
from train.pictures import image_grid, save_picture, to_image
from train.progress import progress
from train.run_folder import CONFIG, is_free

SETTINGS = "settings.json"
FLAGS = {flag: (f"sampling.{flag}",) for flag in ("sampler", "steps", "guidance")}
GRID_USERS = 31


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("sample", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--model", type=Path, required=True, help="final_model of an LDM run")
    parser.add_argument("--users", nargs="+", help="names of users (default: all)")
    parser.add_argument("--num_images", "--num-images", type=int, default=5, help="images of each user")
    parser.add_argument("--seed", type=int, default=0)
    for flag, (key,) in FLAGS.items():
        parser.add_argument(f"--{flag}", help=f"sets {key}")
    args = parser.parse_args(argv)
    for flag, least in (("num_images", 1), ("seed", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    names = pretrained.load_users(args.model)
    config = cli.read_config(args, "ldm", default=args.model / CONFIG, more=FLAGS)
    users = [user_index(name, names) for name in dict.fromkeys(args.users or names)]
    folder = Path(args.output_dir) if args.output_dir else args.model.parent / "generated"

    device = pick_device()
    vae, model, schedule = load_models(args.model, config, len(names))
    vae, model = vae.to(device), model.to(device)
    claim_folder(folder, config.sampling, args.seed, (vae, model))

    paths = {
        (user, number): folder / names[user] / f"generated_{number:03d}.png"
        for user in users for number in range(args.num_images)
    }  # fmt: skip
    missing = [image for image, path in paths.items() if not path.exists()]
    bar = partial(progress, desc="sampling", unit="batch")
    batch_size = config.ldm_training.batch_size
    images = generate(model, vae, schedule, config.sampling, missing, args.seed, batch_size, bar)
    for image, pixels in zip(missing, images, strict=True):
        save_picture(to_image(pixels), paths[image])

    def read(path: Path) -> Tensor:
        return torch.from_numpy(read_image(path, config.data.resolution, config.data.channels)).permute(2, 0, 1)

    rows = [(names[user], [read(paths[user, n]) for n in range(args.num_images)]) for user in users[:GRID_USERS]]
    save_picture(image_grid(rows), folder / "grid.png")
    already = f" ({len(paths) - len(missing)} were there already)" if len(missing) < len(paths) else ""
    print(f"{len(paths)} images of {len(users)} users in {folder}{already}; in one picture: {folder}/grid.png")


def load_models(folder: Path, config: Config, num_users: int) -> tuple[AutoencoderKL, UserDenoiser, Schedule]:
    """What a final_model holds, in evaluation mode. UserError where its parts are of different models."""
    vae = pretrained.load(folder / "vae", AutoencoderKL)
    unet = pretrained.load(folder / "unet", UNet2DConditionModel)
    encoder = pretrained.load(folder / "condition_encoder", UserConditionEncoder)
    schedule = make_schedule(pretrained.load_schedule(folder / "scheduler"))
    if vae.config.scaling_factor is None:
        raise UserError(f"{folder}/vae/config.json: has no scaling_factor, so the VAE's training has not ended")
    for one, its, other, others in (
        ("vae's latent_channels", vae.config.latent_channels, "unet's in_channels", unet.config.latent_channels),
        ("vae's in_channels", vae.config.image_channels, "data.channels", config.data.channels),
        ("condition_encoder's dim", encoder.config.dim, "unet's cross_attention_dim", unet.config.cross_attention_dim),
        ("condition_encoder's num_users", encoder.config.num_users, "number of names in users.json", num_users),
        ("unet's sample_size", unet.config.sample_size, "data.resolution divided by the vae's downscaling",
         config.data.resolution / vae.config.downscale),
    ):  # fmt: skip
        if its != others:
            raise UserError(f"{folder}: the {one} is {its}, but the {other} is {others:g}; they do not go together")
    if config.sampling.steps > schedule.config.num_train_timesteps:
        raise UserError(
            f"{folder}/scheduler: sampling.steps is {config.sampling.steps}, but the model was trained with "
            f"{schedule.config.num_train_timesteps} timesteps; take fewer --steps"
        )
    return vae, UserDenoiser(unet, encoder).eval(), schedule


def user_index(name: str, names: list[str]) -> int:
    if name not in names:
        raise UserError(f"--users {name!r}: not a user of this model{nearest(name, names)}; it knows {some(names)}")
    return names.index(name)


def some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def claim_folder(folder: Path, sampling: SamplingConfig, seed: int, models: tuple[nn.Module, ...]) -> None:
    """Make the folder; into one that exists only write what is in it already: images of the same origin."""
    weights = tensors_hash(tensor for model in models for tensor in model.state_dict().values())
    settings = {"seed": seed, "sampling": asdict(sampling), "weights": weights}
    path = folder / SETTINGS
    if path.is_file():
        before = read_json(path)
        differing = [key for key in settings if before.get(key) != settings[key]]
        if differing:
            raise UserError(f"{folder}: holds images of other {' and '.join(differing)}; give another --output_dir")
    elif not is_free(folder):
        raise UserError(f"{folder}: is not an empty folder, nor one of generated images; give another --output_dir")
    write_json(path, settings)


if __name__ == "__main__":
    cli.run(main)
