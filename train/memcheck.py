"""Account for the memory of a run, without a GPU and without data: `python -m train.memcheck`.

Counts are exact; everything about a GPU is a prediction, which `--measure` compares with a real one.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # saves a second; the process ends long before uncollected cycles fill the memory

import argparse
import json
import sys

import torch

from nets.blocks import LARGEST
from train.base.errors import require
from train.config import cli
from train.memory import report
from train.memory.charts import save_charts
from train.memory.components import components
from train.memory.fit import account_of, on_gpu
from train.memory.gpus import GPUS, gpu_named
from train.memory.measure import measure
from train.memory.scenario import Scenario

MOST_RANKS = 1024  # more is a typing error, and each rank would draw noise for the images of all


def main(argv: list[str] | None = None) -> None:
    known = ", ".join(gpu.name for gpu in GPUS)
    parser = cli.make_parser("memcheck", __doc__, "ldm")
    parser.add_argument("--stage", choices=("vae", "ldm", "sample"), default="ldm", help="what is to run")
    parser.add_argument("--users", type=int, default=31, help="number of users, where the config says none")
    parser.add_argument("--gpu", help=f"look at one card, and trace its largest batches themselves: {known}")
    parser.add_argument("--ranks", type=int, default=1, help="cards of a torchrun, which divide each step")
    parser.add_argument("--json", action="store_true", help="print the account for a program, and nothing else")
    parser.add_argument("--pictures", type=cli.a_path, help="draw the timeline and the modules into this folder")
    parser.add_argument("--measure", type=cli.a_path, metavar="RECORD.md",
                        help="run the steps on the CUDA card that is here, and write how far the predictions were off")
    args = parser.parse_args(argv)  # fmt: skip
    config = cli.read_config(args, args.stage)
    gpu = gpu_named(args.gpu) if args.gpu is not None else None
    scenario = Scenario(config, args.stage, config.user_encoder.num_users or args.users)
    if scenario.training.compile:
        print("compile is true: this is the account of the run without it, which needs other memory", file=sys.stderr)
        scenario = scenario.with_training(compile=False)
    refuse(args, scenario)
    if scenario.trains:
        scenario = scenario.of_one_process(args.ranks, scenario.micro_batch)
    if args.measure:
        print(measure(scenario, args.measure))
        return

    torch.set_num_threads(1)  # no operation is large enough for threads, and on_all_cores forks
    scenario = on_gpu(scenario, gpu)
    parts = components(scenario)
    account = account_of(scenario)
    if args.pictures:
        save_charts(account, args.pictures)
    if args.json:
        print(json.dumps(report.as_dictionary(scenario, parts, account, gpu), indent=1))
        return
    results = report.compute_results(scenario, gpu)
    rows = report.on_gpus(results)
    print(f"{report.answer(scenario, rows)}\n\n{report.title(scenario, gpu)}\n")
    print(f"{report.exact(scenario, parts)}\n\nFrom here on {report.PREDICTED}.\n")
    print(f"{report.by_component(account, account.peak().clock)}\n\n{report.peak_in_words(account)}\n")
    print(f"{report.beside(account, gpu, scenario.processes)}\n")
    print(f"{report.gpus_table(rows)}\n")
    if gpu:
        print(f"{report.one_gpu(rows[0])}\n")
    if advice := report.advice(scenario, account, results, gpu):
        print(f"{report.advice_table(advice, account.peak().phase)}\n")


def refuse(args: argparse.Namespace, scenario: Scenario) -> None:
    """Raise UserError for numbers out of range, and for flags that exclude each other."""
    for what, count, most in (
        ("--users", scenario.users, LARGEST), ("--ranks", args.ranks, MOST_RANKS),
        ("batch_size x gradient_accumulation_steps =", scenario.images_per_step, LARGEST),
    ):  # fmt: skip
        require(1 <= count <= most, f"{what} {count}: must be at least 1 and at most {most}")
    require(scenario.trains or args.ranks == 1, "--ranks is of the trainings: images are sampled on one card")
    require(
        not args.measure or not (args.gpu or args.json or args.pictures),
        "--measure compares with the card that is here, and goes with none of --gpu, --json, --pictures",
    )


if __name__ == "__main__":
    cli.run(main)
