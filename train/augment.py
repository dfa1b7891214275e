"""Take the data set home: `python -m train.augment --model runs/demo/ldm/final_model --per_user 20`

Writes a folder of the layout of the user's own, with the real training images and generated ones, and `manifest.csv`,
which says what each file is; any classifier can be trained on it. What is held out stays out. The generated images are
those that `train.sample --purpose augment` makes with the same settings and seed; `--sift` leaves some out, and makes
others instead.
"""

from train.api.data_set import augment
from train.base.errors import require
from train.config import cli
from train.runs.final_model import config_path, trained_users
from train.runs.generated import SEED


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
    trained_users(args.model)  # where there is no model, this says so
    config = cli.read_config(args, "sample", default=config_path(args.model), more=cli.SAMPLING)
    with cli.naming_flags():
        print(augment(
            args.model, config=config, per_user=args.per_user, sift=args.sift, seed=args.seed, images=args.images,
            guidance=config.sampling.guidance if cli.gives_guidance(args) else None,
            folder=config.ldm_training.output_dir if args.output_dir else None,
        ))  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
