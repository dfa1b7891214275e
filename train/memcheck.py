"""Account for the memory of a run, without a GPU and without data: `python -m train.memcheck`.

Counts are exact; everything about a card is predicted, until `--measure` has compared it with one.
"""
import gc

if __name__ == "__main__":
    gc.disable()  # it ends before cycles could fill anything; to look for them, from here on, takes a second

import argparse
import json
from pathlib import Path

import torch

from nets.blocks import LARGEST
from train.base.errors import UserError
from train.config import cli
from train.memory import report
from train.memory.charts import draw_charts
from train.memory.components import components
from train.memory.fit import account_of, on_card
from train.memory.gpus import CARDS, card_named
from train.memory.measure import measure
from train.memory.scenario import Setting

MOST_RANKS = 1024  # more is a slip of the finger, and would draw noise for all of their images


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("memcheck", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--stage", choices=("vae", "ldm", "sample"), default="ldm", help="what is to run")
    parser.add_argument("--users", type=int, default=31, help="number of users, where the config says none")
    parser.add_argument("--gpu", help=f"look at one card, and trace its largest batches themselves: {names()}")
    parser.add_argument("--ranks", type=int, default=1, help="cards of a torchrun, which divide each step")
    parser.add_argument("--json", action="store_true", help="print the account for a program, and nothing else")
    parser.add_argument("--csv", type=a_path, help="write the peak by module to this file")
    parser.add_argument("--pictures", type=a_path, help="draw the timeline and the modules into this folder")
    parser.add_argument("--measure", type=a_path, metavar="RECORD.md",
                        help="run the steps on the CUDA card that is here, and write how far the predictions were off")
    args = parser.parse_args(argv)  # fmt: skip
    config = cli.read_config(args, "vae" if args.stage == "vae" else "ldm")
    users = config.user_encoder.num_users or args.users
    card = card_named(args.gpu) if args.gpu is not None else None
    setting = Setting(config, args.stage, users)
    refuse(args, setting)
    if args.stage != "sample":
        setting = setting.of_one_process(args.ranks, setting.training.batch_size)
    if args.measure:
        print(measure(setting, args.measure))
        return

    torch.set_num_threads(1)  # nothing here is large, and cores get whole questions
    setting = on_card(setting, card)
    parts = components(config, args.stage, users)
    account = account_of(setting)
    if args.csv:
        report.write_modules(account, args.csv)
    if args.pictures:
        draw_charts(account, args.pictures)
    if args.json:
        print(json.dumps(report.as_dictionary(setting, parts, account, card), indent=1))
        return
    print(f"{report.title(setting, card)}\n\n{report.exact(setting, parts)}\n\nFrom here on {report.PREDICTED}.\n")
    print(f"{report.by_component(account, account.peak().clock)}\n\n{report.peak_in_words(account)}\n")
    print(f"{report.beside(account, card, setting.processes)}\n")
    cards = [card] if card else CARDS
    answers = report.ask(setting, cards, card)
    if was := report.old_estimates(setting, parts, answers, card):
        print("An earlier estimate, for batch 1, which was wrong, beside the account of the same batch:\n")
        print(f"{report.old_estimates_table(was)}\n")
    rows = report.on_cards(cards, answers)
    print(f"{report.cards_table(rows)}\n")
    if card:
        print(f"{report.one_card(rows[0])}\n")
    if advice := report.advice(setting, account, answers, card):
        print(report.advice_table(advice))


def a_path(text: str) -> Path:
    if not text:  # as of a shell variable that is not set
        raise argparse.ArgumentTypeError("needs a value, not an empty one")
    return Path(text)


def refuse(args: argparse.Namespace, setting: Setting) -> None:
    """UserError for numbers that no run has, and for flags that do not go together."""
    window = setting.training.window
    for what, count, most in (
        ("--users", setting.users, LARGEST), ("--ranks", args.ranks, MOST_RANKS),
        ("batch_size x gradient_accumulation_steps =", window, LARGEST),
    ):  # fmt: skip
        if not 1 <= count <= most:
            raise UserError(f"{what} {count}: must be at least 1 and at most {most}")
    if args.stage == "sample" and args.ranks > 1:
        raise UserError("--ranks is of the trainings: images are sampled on one card")
    if args.measure and (args.gpu or args.json or args.csv or args.pictures):
        raise UserError("--measure compares with the card that is here, and goes with none of --gpu, --json, --csv, "
                        "--pictures")  # fmt: skip


def names() -> str:
    return ", ".join(card.name for card in CARDS)


if __name__ == "__main__":
    cli.run(main)
