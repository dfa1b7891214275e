"""Take the data set home: `python -m train.augment --model runs/demo/ldm/final_model --per_user 20`

Writes a folder of the layout of the user's own, with the real training images and generated ones, and `manifest.csv`,
which says what each file is; any classifier can be trained on it. What is held out stays out. The generated images are
those that `train.sample --purpose augment` makes with the same settings and seed; `--sift` leaves some out, and makes
others instead.
"""

import argparse
from pathlib import Path

from train.base.errors import require
from train.base.files import tensors_hash
from train.base.processes import on_main, require_agreement
from train.config import cli
from train.data.split import numbers_of_recordings, training_images
from train.engine.device import pick_device
from train.judge.augmented import Choice, Judge, read_made
from train.judge.manifest import verdict, write_data_set
from train.judge.material import labelled, real_images
from train.judge.purpose import for_a_classifier
from train.runs.augmented import EVALUATION, bring_report, claim_folders, default_augmented, real_files
from train.runs.final_model import config_path, load_ldm, split_path, trained_users
from train.runs.folder import locked
from train.runs.generated import MOST_IMAGES, SEED, default_folder, image_paths, settings_of
from train.stages.generate import fill


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("augment", __doc__, "sample")
    parser.add_argument("--model", type=cli.a_path, required=True, help="final_model or checkpoint of an LDM run")
    parser.add_argument("--per_user", "--per-user", type=int, metavar="N",
                        help="generated images of each user (default: as many as the user with most has real ones)")
    parser.add_argument("--sift", action="store_true",
                        help="leave out copies and what looks like somebody else, and make others in their place")
    parser.add_argument("--images", type=cli.a_path,
                        help="where the generated images are, or will be, by themselves (default: generated/ beside "
                             "the model)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=SEED, help="other images for another one")
    cli.add_flags(parser, cli.SAMPLING)
    args = parser.parse_args(argv)
    require(args.seed >= 0, f"--seed {args.seed}: must be at least 0")
    names, per_user = trained_users(args.model), images_of_each(args)
    config = cli.read_config(args, "sample", default=config_path(args.model), more=cli.SAMPLING)
    device = pick_device()
    trained = load_ldm(args.model, config).to(device)
    if not cli.gives_guidance(args):
        config = for_a_classifier(args.model, config, trained)
    data, split = real_images(args.model, config)
    real, rows = labelled(data, split.training), split.training.tolist()
    paths = [data.paths[row] for row in rows]

    settings = settings_of(config.sampling, args.seed, trained)
    require_agreement(lambda: settings)
    images = args.images or default_folder(args.model, settings)
    default = default_augmented(args.model, settings, per_user, args.sift)
    folder = Path(config.ldm_training.output_dir) if args.output_dir else default
    origin = {"per_user": per_user, "sift": args.sift, "real_images": tensors_hash([real.images], paths)}
    on_main(lambda: claim_folders(Path(config.data.dir), images, settings, folder, settings | origin))

    with locked(images, "writing"), locked(folder, "writing"):
        judge = Judge(real, numbers_of_recordings(data, rows, config.data), len(names), device)
        choice = Choice(len(names), per_user, args.sift)
        wanted = choice.first
        while wanted:
            made = image_paths(images, names, wanted)
            fill(images, trained, config.sampling, args.seed, made)
            wanted = on_main(lambda made=made: choice.look_at(list(made), judge(read_made(made, config.data))))

        how = {"seed": args.seed, **{flag: getattr(config.sampling, flag) for flag in (*cli.SAMPLING, "mix_above")}}
        real_ones = real_files(paths, Path(config.data.dir))
        for line in on_main(lambda: write_data_set(folder, real_ones, images, names, how, choice)):
            print(line)
        report = on_main(lambda: bring_report(None if args.sift else images, folder))
    if report:
        print(verdict(report, folder / EVALUATION))
    elif on_main(lambda: not all(choice.left_out().values())):
        print(f"do they help? python -m train.evaluate --model {args.model} --images {folder} judges them")
    print(f"the data set is {folder}, and manifest.csv lists it")


def images_of_each(args: argparse.Namespace) -> int:
    """How many generated images of each user are asked for."""
    if args.per_user is None:
        return max(training_images(split_path(args.model)).values())
    require(args.per_user >= 1, f"--per_user {args.per_user}: must be at least 1")
    most = f"--per_user {args.per_user}: must be at most {MOST_IMAGES}; take several seeds for more"
    require(args.per_user <= MOST_IMAGES, most)
    return args.per_user


if __name__ == "__main__":
    cli.run(main)
