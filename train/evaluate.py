"""Do generated images help? `python -m train.evaluate --model runs/demo/ldm/final_model`

Classifiers are trained with and without the generated images, and tested on real recordings that nothing was trained
on. Writes `report.html`, which shows everything, and `evaluation.json`, beside the images.
"""

from pathlib import Path

from train.base.errors import require
from train.config import cli
from train.engine.device import pick_device
from train.engine.log import METRICS, read_lines
from train.judge.evaluation import evaluate, hash_of_question
from train.judge.material import collect
from train.judge.pictures import closest_copies, side_by_side
from train.judge.purpose import for_a_classifier
from train.judge.report import report
from train.judge.verdict import HARMS, HELPS
from train.runs.augmented import report_of, save_report
from train.runs.card import write_verdict
from train.runs.final_model import config_path, load_ldm, trained_users
from train.runs.generated import SEED, folder_to_judge, settings_of
from train.runs.so_far import run_of


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
    names = trained_users(args.model)
    config = cli.read_config(args, "ldm", default=config_path(args.model))
    device, trained = pick_device(), load_ldm(args.model, config)
    if not cli.gives_guidance(args):
        config = for_a_classifier(args.model, config, trained, choose=False)
    settings = settings_of(config.sampling, SEED, trained)
    images, output = folder_to_judge(args.model, settings, args.images, Path(config.data.dir), names)

    vae = trained.vae.to(device)
    material = collect(args.model, config, images, args.test_dir, vae, device)
    metrics = read_lines(run_of(args.model) / METRICS)
    losses = [line["validation_loss"] for line in metrics if "validation_loss" in line]
    where = {"model": str(args.model), "images": str(images), "test_dir": args.test_dir and str(args.test_dir)}
    key = f"{hash_of_question(material, vae, losses, args.quick, args.seed)} of {where}"
    judged = report_of(output, key)
    if judged:
        print(f"judging: nothing has changed since {output}/evaluation.json was written; without it, judges are asked "
              "again")  # fmt: skip
    else:
        found = evaluate(material, vae, losses, args.quick, args.seed, device, lambda line: print(f"judging: {line}"))
        verdicts = {name: result["verdict"]["sentence"] for name, result in found["results"].items()}
        judged = {"verdict": verdicts, "of": key, **where, **found}
        pictures = {"images": side_by_side(material), "copies": closest_copies(material, judged["copies"]["pairs"])}
        page = report(judged, {name: picture for name, picture in pictures.items() if picture})
        save_report(output, judged, page, pictures["images"])
    if not args.images:
        write_verdict(args.model, list(judged["verdict"].values()))
    for name, sentence in judged["verdict"].items():
        print(f"on {args.test_dir}: {sentence}" if name == "test_dir" else sentence)
    sifting = judged["results"]["held_out"]["sifting"]
    if sifting and sifting["word"] in (HELPS, HARMS):
        print(sifting["sentence"])
    for line in judged["results"]["held_out"]["advice"]:
        print(f"to try: {line}")
    print(f"everything is in {output}/report.html, every figure in {output}/evaluation.json")


if __name__ == "__main__":
    cli.run(main)
