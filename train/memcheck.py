"""Account for the memory of a run, without a GPU and without data: `python -m train.memcheck`.

Counts are exact; everything about a GPU is a prediction, which `--measure` compares with a real one.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # saves a second; the process ends long before uncollected cycles fill the memory

import json

from train.api.account import USERS, memcheck, scenario_of
from train.base.errors import require
from train.config import cli
from train.memory.charts import save_charts
from train.memory.gpus import GPUS
from train.memory.measure import measure


def main(argv: list[str] | None = None) -> None:
    known = ", ".join(gpu.name for gpu in GPUS)
    parser = cli.make_parser("memcheck", __doc__, "ldm")
    parser.add_argument("--stage", choices=("vae", "ldm", "sample"), default="ldm", help="what is to run")
    parser.add_argument("--users", type=int, default=USERS, help="number of users, where the config says none")
    parser.add_argument("--gpu", help=f"look at one card, and trace its largest batches themselves: {known}")
    parser.add_argument("--ranks", type=int, default=1, help="cards of a torchrun, which divide each step")
    parser.add_argument("--json", action="store_true", help="print the account for a program, and nothing else")
    parser.add_argument("--pictures", type=cli.a_path, help="draw the timeline and the modules into this folder")
    parser.add_argument("--measure", type=cli.a_path, metavar="RECORD.md",
                        help="run the steps on the CUDA card that is here, and write how far the predictions were off")
    args = parser.parse_args(argv)  # fmt: skip
    config = cli.read_config(args, args.stage)
    require(
        not args.measure or not (args.gpu or args.json or args.pictures),
        "--measure compares with the card that is here, and goes with none of --gpu, --json, --pictures",
    )
    with cli.naming_flags():
        if args.measure:
            print(measure(scenario_of(config, args.stage, args.users, args.ranks), args.measure))
            return
        found = memcheck(config, stage=args.stage, users=args.users, gpu=args.gpu, ranks=args.ranks)
    if args.pictures:
        save_charts(found.account, args.pictures)
    print(json.dumps(found.data, indent=1) if args.json else f"{found}\n")


if __name__ == "__main__":
    cli.run(main)
