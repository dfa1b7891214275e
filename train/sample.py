"""Generate images of users: `python -m train.sample --model runs/demo/ldm/final_model --users ID1 ID5 --seed 42`.

Writes `USER/generated_000.png`, ... and `grid.png`. The same model, settings and seed give the same images.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.sampling import SamplingConfig
from diffusion.schedule import make_schedule
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train import cli, pretrained
from train.data import read_image
from train.denoising import UserDenoiser
from train.device import pick_device
from train.errors import UserError, nearest
from train.files import read_json, tensors_hash, write_json
from train.generate import generate
from train.pictures import image_grid, save_picture, to_image
from train.progress import progress
from train.run_folder import CONFIG

SETTINGS = "settings.json"
GRID_USERS = 31


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("sample", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--model", type=Path, required=True, help="final_model of an LDM run")
    parser.add_argument("--users", nargs="+", help="names of users (default: all)")
    parser.add_argument("--num_images", "--num-images", type=int, default=5, help="images of each user")
    parser.add_argument("--seed", type=int, default=0)
    for flag in ("sampler", "steps", "guidance"):
        parser.add_argument(f"--{flag}", help=f"sets sampling.{flag}")
    args = parser.parse_args(argv)
    args.set += [f"sampling.{f}={getattr(args, f)}" for f in ("sampler", "steps", "guidance") if getattr(args, f)]
    if args.num_images < 1 or args.seed < 0:
        raise UserError(f"--num_images {args.num_images} --seed {args.seed}: at least 1 image, and a seed from 0 up")
    names = pretrained.load_users(args.model)
    config = cli.read_config(args, "ldm", default=args.model / CONFIG)
    users = [user_index(name, names) for name in dict.fromkeys(args.users or names)]
    folder = Path(args.output_dir) if args.output_dir else args.model.parent / "generated"

    device = pick_device()
    vae = pretrained.load(args.model / "vae", AutoencoderKL).to(device)
    unet = pretrained.load(args.model / "unet", UNet2DConditionModel)
    if unet.config.sample_size is None:
        raise UserError(f"{args.model}/unet/config.json: has no sample_size, the side of the latents to generate")
    model = UserDenoiser(unet, pretrained.load(args.model / "condition_encoder", UserConditionEncoder)).to(device)
    claim_folder(folder, config.sampling, args.seed, (vae, model))

    paths = {
        (user, number): folder / names[user] / f"generated_{number:03d}.png"
        for user in users for number in range(args.num_images)
    }  # fmt: skip
    missing = [image for image, path in paths.items() if not path.exists()]
    schedule = make_schedule(pretrained.load_schedule(args.model / "scheduler"))
    bar = partial(progress, desc="sampling", unit="batch")
    batch_size = config.ldm_training.batch_size
    images = generate(model.eval(), vae, schedule, config.sampling, missing, args.seed, batch_size, bar)
    for image, pixels in zip(missing, images, strict=True):
        save_picture(to_image(pixels), paths[image])

    def read(path: Path) -> Tensor:
        return torch.from_numpy(read_image(path, config.data.resolution, config.data.channels)).permute(2, 0, 1)

    rows = [(names[user], [read(paths[user, n]) for n in range(args.num_images)]) for user in users[:GRID_USERS]]
    save_picture(image_grid(rows), folder / "grid.png")
    already = f" ({len(paths) - len(missing)} were there already)" if len(missing) < len(paths) else ""
    print(f"{len(paths)} images of {len(users)} users in {folder}{already}; in one picture: {folder}/grid.png")


def user_index(name: str, names: list[str]) -> int:
    if name not in names:
        raise UserError(f"--users {name}: not a user of this model{nearest(name, names)}; it knows {some(names)}")
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
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty; give another --output_dir")
    write_json(path, settings)


if __name__ == "__main__":
    cli.run(main)
