"""Generate images of users: `python -m train.sample --model runs/demo/ldm/final_model --users ID1 ID5 --seed 42`.

Writes `USER/generated_000.png`, ... and `grid.png`, by default into `generated/` beside the model, there into a folder
named after settings and seed. The same model, settings and seed give the same images; what is there is not made again.
"""

from pathlib import Path

from diffusion.schedule import Schedule, make_schedule
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import UserError, nearest
from train.base.progress import progress
from train.config import cli
from train.config.schema import Config
from train.engine.device import pick_device
from train.runs import model_folder as pretrained
from train.runs.folder import CONFIG
from train.runs.generated import claim_folder, default_folder, overview, settings_of
from train.runs.pictures import save_picture, to_image
from train.stages.denoising import UserDenoiser
from train.stages.generate import generate

FLAGS = {flag: (f"sampling.{flag}",) for flag in ("sampler", "steps", "guidance")}
SEED, USERS = 0, "users.json"
MOST_IMAGES = 100_000  # of a user


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("sample", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--model", type=Path, required=True, help="final_model of an LDM run")
    parser.add_argument("--users", nargs="+", help="names of users (default: all)")
    parser.add_argument("--num_images", "--num-images", type=int, default=5, help="images of each user")
    parser.add_argument("--seed", type=int, default=SEED)
    for flag, (key,) in FLAGS.items():
        parser.add_argument(f"--{flag}", help=cli.meaning((key,)))
    args = parser.parse_args(argv)
    for flag, least in (("num_images", 1), ("seed", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    if args.num_images > MOST_IMAGES:
        raise UserError(f"--num_images {args.num_images}: must be at most {MOST_IMAGES}; take several seeds for more")
    names = trained_users(args.model)
    config = cli.read_config(args, "ldm", default=args.model / CONFIG, more=FLAGS)
    users = [user_index(name, names) for name in dict.fromkeys(args.users or names)]

    device = pick_device()
    vae, model, schedule = load_models(args.model, config, len(names))
    settings = settings_of(config.sampling, args.seed, (vae, model))
    folder = Path(args.output_dir) if args.output_dir else default_folder(args.model, settings)
    vae, model = vae.to(device), model.to(device)
    claim_folder(folder, settings)

    paths = {
        (user, number): folder / names[user] / f"generated_{number:03d}.png"
        for user in users for number in range(args.num_images)
    }  # fmt: skip
    missing = [image for image, path in paths.items() if not path.exists()]
    size = config.ldm_training.batch_size
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    for batch in progress(batches, desc="sampling", unit="batch") if batches else ():
        images = generate(model, vae, schedule, config.sampling, batch, args.seed, size)
        for image, pixels in zip(batch, images, strict=True):
            save_picture(to_image(pixels), paths[image])
    save_picture(overview(folder, names, config.data), folder / "grid.png")
    already = f" ({len(paths) - len(missing)} there already)" if len(missing) < len(paths) else ""
    said = f"{counted(len(paths), 'image')} of {counted(len(users), 'user')} in {folder}{already}"
    print(f"{said}; in one picture: {folder}/grid.png")


def trained_users(folder: Path) -> list[str]:
    """The users' names of a final_model. UserError where the folder is none."""
    if not (folder / USERS).is_file():
        near = [place for place in (folder / "final_model", folder / "ldm/final_model") if (place / USERS).is_file()]
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{folder}: there is no trained LDM here{hint}; run make train-ldm, or give the final_model folder of one"
        )
    return pretrained.load_users(folder)


def counted(number: int, thing: str) -> str:
    """"1 image", "2 images"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


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


if __name__ == "__main__":
    cli.run(main)
