"""Do generated images help? `python -m train.evaluate --model runs/demo/ldm/final_model`

Classifiers are trained with and without the generated images, and tested on real recordings that nothing was trained
on. Writes `report.html`, which shows everything, and `evaluation.json`, beside the images.
"""

from train.api.judgement import evaluate
from train.base.errors import require
from train.config import cli
from train.runs.final_model import config_path, trained_users
from train.runs.generated import SEED


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("evaluate", __doc__, "ldm")
    parser.add_argument("--model", type=cli.a_path, required=True, help="final_model or checkpoint of an LDM run")
    parser.add_argument("--images", type=cli.a_path,
                        help="folder of images by user (default: the one train.sample makes)")  # fmt: skip
    parser.add_argument("--test_dir", "--test-dir", type=cli.a_path, help="real images of other conditions, by user")
    parser.add_argument("--quick", action="store_true", help="fewer arms and seeds")
    parser.add_argument("--seed", type=int, default=SEED, help="of the judges and what they learn from")
    args = parser.parse_args(argv)
    require(args.seed >= 0, f"--seed {args.seed}: must be at least 0")
    trained_users(args.model)  # where there is no model, this says so
    config = cli.read_config(args, "ldm", default=config_path(args.model))
    with cli.naming_flags():
        print(evaluate(
            args.model, config=config, images=args.images, test_dir=args.test_dir, quick=args.quick, seed=args.seed,
            guidance=config.sampling.guidance if cli.gives_guidance(args) else None,
        ))  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
