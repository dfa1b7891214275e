"""Account for the memory of a run, without a GPU and without data: `python -m train.memcheck`.

Counts are exact; everything about a card is predicted.
"""

import json
import sys
from pathlib import Path

from train import cli
from train.errors import UserError, nearest
from train.memory import report
from train.memory.cards import CARDS
from train.memory.charts import draw_charts
from train.memory.components import components
from train.memory.plan import Growth, account_of, cheapest_that_fits, levers, verified
from train.memory.setting import Setting


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("memcheck", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--stage", choices=("vae", "ldm", "sample"), default="ldm", help="what is to run")
    parser.add_argument("--users", type=int, default=31, help="number of users, where the config says none")
    parser.add_argument("--gpu", help=f"look at one card, and verify its largest batch: {names()}")
    parser.add_argument("--optimizer", choices=("foreach", "fused"), default="foreach", help="AdamW's form")
    parser.add_argument("--ranks", type=int, default=1, help="cards that share the optimizer's state")
    parser.add_argument("--advice", action="store_true", help="trace what each way of saving memory would save")
    parser.add_argument("--json", action="store_true", help="print the account for a program, and nothing else")
    parser.add_argument("--csv", type=Path, help="write the peak by module to this file")
    parser.add_argument("--pictures", type=Path, help="draw the timeline and the modules into this folder")
    args = parser.parse_args(argv)
    config = cli.read_config(args, "vae" if args.stage == "vae" else "ldm")
    users = config.user_encoder.num_users or args.users
    if min(users, args.ranks) < 1:
        raise UserError("--users and --ranks must be at least 1")
    card = report.card_named(args.gpu) if args.gpu else None
    if args.gpu and card is None:
        raise UserError(f"--gpu {args.gpu}: not a known card{nearest(args.gpu, [c.name for c in CARDS])}: {names()}")

    setting = Setting(config, args.stage, users, optimizer=args.optimizer, ranks=args.ranks)
    parts = components(config, args.stage, users)
    if args.json:
        json.dump(report.as_dictionary(setting, parts, account_of(setting), card), sys.stdout, indent=1)
        return
    print(report.exact(setting, parts))

    growth = Growth(setting)
    account = growth.account(setting.training.batch_size)
    peak = account.peak()
    print(f"\n{report.PREDICTED}\n\n{report.by_component(account, peak.clock)}\n{report.peak_in_words(account)}")
    print(f"\n{report.outside(account, card)}")
    if args.stage == "ldm" and (was := report.old_estimate(setting, parts, growth.account(1))):
        print(f"\n{was}")
    checkpointed = None
    if args.stage != "sample" and not setting.training.gradient_checkpointing:
        checkpointed = Growth(setting.with_training(gradient_checkpointing=True))
    print(f"\n{report.cards_table(setting, account, growth, checkpointed, [card] if card else CARDS)}")
    if card and (largest := growth.largest(card)):
        print(verification(largest, *verified(setting, largest, card)))
    if args.advice:
        print(f"\n{report.advice(setting, account, levers(setting))}")
    if args.advice and card:
        pulled = cheapest_that_fits(setting, card)
        print(f"{card.name}: {'no set of these fits' if pulled is None else ', then '.join(pulled) or 'fits as it is'}")
    if args.csv:
        report.write_modules(account, args.csv)
    if args.pictures:
        draw_charts(account, args.pictures)


def verification(batch: int, fits: bool, next_fits: bool) -> str:
    says = {True: "fits", False: "does not fit"}
    return f"Traced themselves: batch {batch} {says[fits]}, batch {batch + 1} {says[next_fits]}."


def names() -> str:
    return ", ".join(card.name for card in CARDS)


if __name__ == "__main__":
    cli.run(main)
