"""Generate images of users: `python -m train.sample --model runs/demo/ldm/final_model --users ID1 ID5 --seed 42`.

Writes `USER/generated_000.png`, ... and `grid.png`, by default into a folder in `generated/` beside the model that is
named after settings and seed. The same model, settings and seed give the same images, up to the rounding of sums;
existing ones are not made again. `--per_training_image 1` makes as many images of each user as trained: it doubles the
data. `--purpose augment` takes the guidance that serves a classifier, which judges who know the training recordings
only choose once for a model.
"""

import argparse
from pathlib import Path

from train.base.errors import UserError, nearest, require, some
from train.base.names import composed
from train.base.processes import on_main, require_agreement
from train.base.units import counted
from train.config import cli
from train.config.sections import DataConfig
from train.data.images import save_picture
from train.data.split import training_images
from train.engine.device import pick_device
from train.judge.purpose import for_a_classifier
from train.runs.final_model import config_path, load_ldm, split_path, trained_users
from train.runs.folder import locked
from train.runs.generated import MOST_IMAGES, SEED, claim_folder, default_folder, image_paths, overview, settings_of
from train.stages.generate import fill

IMAGES = 5  # of each user


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
    names = trained_users(args.model)
    num_images = images_of_each(args)
    config = cli.read_config(args, "sample", default=config_path(args.model), more=cli.SAMPLING)
    places = {name: place for place, name in enumerate(names)}
    asked = [composed(name) for name in args.users or names]
    for name in asked:
        if name not in places:
            knows = f"not a user of this model{nearest(name, names)}; it knows {some(names, 8)}"
            raise UserError(f"--users {name!r}: {knows}")
    users = [places[name] for name in dict.fromkeys(asked)]

    device = pick_device()
    trained = load_ldm(args.model, config).to(device)
    if args.purpose == "augment" and not cli.gives_guidance(args):
        config = for_a_classifier(args.model, config, trained)
    settings = settings_of(config.sampling, args.seed, trained)
    require_agreement(lambda: settings)
    folder = Path(config.ldm_training.output_dir) if args.output_dir else default_folder(args.model, settings)
    on_main(lambda: claim_folder(Path(config.data.dir), folder, settings))

    wanted = [(user, number) for user in users for number in range(num_images)]
    paths = image_paths(folder, names, wanted)
    with locked(folder, "writing"):
        there = fill(folder, trained, config.sampling, args.seed, paths)
        shown = on_main(lambda: save_overview(folder, names, config.data))
    already = f" ({there} there already)" if there else ""
    said = f"{counted(len(paths), 'image')} of {counted(len(users), 'user')} in {folder}{already}"
    print(f"{said}; {shown}in one picture: {folder}/grid.png")


def save_overview(folder: Path, names: list[str], config: DataConfig) -> str:
    """Save a picture of the folder's images; in words, how many of them it shows where that is not all."""
    picture, shown = overview(folder, names, config)
    save_picture(picture, folder / "grid.png")
    return shown


def images_of_each(args: argparse.Namespace) -> int:
    """How many images of each user are asked for."""
    flag = "num_images" if args.per_training_image is None else "per_training_image"
    given = getattr(args, flag)
    if given is None:
        return IMAGES
    times = max(training_images(split_path(args.model)).values()) if flag == "per_training_image" else 1
    require(given >= 1, f"--{flag} {given}: must be at least 1")
    most = MOST_IMAGES // times
    require(given <= most, f"--{flag} {given}: must be at most {most}; take several seeds for more")
    return given * times


if __name__ == "__main__":
    cli.run(main)
