"""Generate images of users: `python -m train.sample --model runs/demo/ldm/final_model --users ID1 ID5 --seed 42`.

Writes `USER/generated_000.png`, ... and `grid.png`, by default into a folder in `generated/` beside the model that is
named after settings and seed. The same model, settings and seed give the same images, up to the rounding of sums;
existing ones are not made again. `--per_training_image 1` makes as many images of each user as trained: it doubles the
data. `--purpose augment` takes the guidance that serves a classifier, which judges who know the training recordings
only choose once for a model.
"""

import argparse

from train.api.user_diffusion import IMAGES, UserDiffusion
from train.base.errors import require
from train.base.units import counted
from train.config import cli
from train.data.split import training_images
from train.engine.device import pick_device
from train.runs.final_model import config_path, split_path, trained_users
from train.runs.generated import MOST_IMAGES, SEED


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("sample", __doc__, "sample")
    parser.add_argument("--model", type=cli.a_path, required=True, help="final_model or checkpoint of an LDM run")
    parser.add_argument("--users", nargs="+", help="names of users (default: all)")
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--num_images", "--num-images", type=int, help=f"images of each user (default: {IMAGES})")
    number.add_argument("--per_training_image", "--per-training-image", type=int, metavar="K",
                        help="instead: K for each training image of the user that has most, the same for every user")
    parser.add_argument("--purpose", choices=("look", "augment"), default="look",
                        help="what the images are for: to look at, with the config's guidance (the default), or to "
                             "train a classifier on")  # fmt: skip
    parser.add_argument("--seed", type=int, default=SEED, help="other images for another one")
    cli.add_flags(parser, cli.SAMPLING)
    args = parser.parse_args(argv)
    require(args.seed >= 0, f"--seed {args.seed}: must be at least 0")
    trained_users(args.model)  # where there is no model, this says so
    num_images = images_of_each(args)
    config = cli.read_config(args, "sample", default=config_path(args.model), more=cli.SAMPLING)

    model = UserDiffusion.load(args.model, config=config).to(pick_device())
    with cli.naming_flags(per_user="num_images"):
        made = model.write(
            args.users, num_images, args.seed, purpose=args.purpose,
            guidance=config.sampling.guidance if cli.gives_guidance(args) else None,
            folder=config.ldm_training.output_dir if args.output_dir else None,
        )  # fmt: skip
    already = f" ({made.there} there already)" if made.there else ""
    files = counted(sum(map(len, made.images.values())), "image")
    said = f"{files} of {counted(len(made.images), 'user')} in {made.folder}{already}"
    print(f"{said}; {made.shown}in one picture: {made.folder}/grid.png")


def images_of_each(args: argparse.Namespace) -> int:
    """How many images of each user are asked for."""
    if args.per_training_image is None:
        return IMAGES if args.num_images is None else args.num_images
    times, given = max(training_images(split_path(args.model)).values()), args.per_training_image
    require(given >= 1, f"--per_training_image {given}: must be at least 1")
    most = MOST_IMAGES // times
    require(given <= most, f"--per_training_image {given}: must be at most {most}; take several seeds for more")
    return given * times


if __name__ == "__main__":
    cli.run(main)
