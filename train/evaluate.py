"""Judge generated images: `python -m train.evaluate --model runs/demo/ldm/final_model`.

A classifier learns to recognise users from the real training images; how often does it recognise the user in
real images that it has not seen, and how often in generated ones?
"""

from pathlib import Path

import torch

from train.base.errors import UserError
from train.base.files import read_json, write_json
from train.config import cli
from train.config.schema import Config
from train.data.dataset import load_images
from train.data.split import evenly, load_split
from train.engine.device import pick_device
from train.runs.folder import CONFIG
from train.runs.generated import SETTINGS, default_folder, image_files, read_pixels, settings_of
from train.runs.pictures import real_and_generated, save_picture, user_labels
from train.sample import SEED, counted, load_models, trained_users
from train.stages.classifier import predict_users, train_classifier

GRID_USERS, GRID_IMAGES = 6, 5


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("evaluate", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--model", type=Path, required=True, help="final_model of an LDM run")
    parser.add_argument("--images", type=Path, help="folder of train.sample (default: the one it takes by itself)")
    args = parser.parse_args(argv)
    names = trained_users(args.model)
    config = cli.read_config(args, "ldm", default=args.model / CONFIG)
    folder = images_of(args.model, config, len(names), args.images)
    files = [(user, path) for user, name in enumerate(names) for path in image_files(folder, name)]
    if not files:
        raise UserError(f"{folder}: holds no image of a user of {args.model}; make some with python -m train.sample")

    data = load_images(config.data)
    if data.user_names != names:
        raise UserError(f"{config.data.dir}: does not hold the users that {args.model} was trained on")
    split = load_split(args.model / "split.json", data, config.data)
    device = pick_device()
    classifier = train_classifier(data, split.train, config.seed, device)
    generated = torch.stack([read_pixels(path, config.data) for _, path in files])
    asked_for = torch.tensor([user for user, _ in files])
    on_real = predict_users(classifier, data.images[split.validation], device) == data.user_index[split.validation]
    on_generated = predict_users(classifier, generated, device) == asked_for

    result = {
        "recognised_real": float(on_real.float().mean()),
        "real_images": len(on_real),
        "recognised_generated": float(on_generated.float().mean()),
        "generated_images": len(on_generated),
        "chance": 1 / len(names),
        "users": {
            name: float(on_generated[asked_for == user].float().mean())
            for user, name in enumerate(names) if (asked_for == user).any()
        },
    }  # fmt: skip
    write_json(folder / "evaluation.json", result)
    save_picture(comparison(data, split.validation, generated, asked_for), folder / "generated_and_real.png")
    weakest = min(result["users"], key=result["users"].get)
    print(
        f"recognised: {result['recognised_generated']:.1%} of {counted(len(on_generated), 'generated image')}, "
        f"{result['recognised_real']:.1%} of {counted(len(on_real), 'real image')} held out "
        f"(chance {result['chance']:.1%}); least well {weakest}, {result['users'][weakest]:.0%}"
    )
    print(f"look at {folder}/generated_and_real.png; every figure is in {folder}/evaluation.json")


def images_of(model: Path, config: Config, num_users: int, given: Path | None) -> Path:
    """The folder of this very model's images: the one that is given, or that train.sample makes without any flag."""
    vae, denoiser, _ = load_models(model, config, num_users)
    settings = settings_of(config.sampling, SEED, (vae, denoiser))
    folder = given or default_folder(model, settings)
    if not (folder / SETTINGS).is_file():  # a folder of real images would be judged, and written to
        what = "is not a folder that train.sample wrote" if given else "this model's images are not there yet"
        raise UserError(f"{folder}: {what}; make them with python -m train.sample --model {model}")
    if read_json(folder / SETTINGS).get("weights") != settings["weights"]:
        raise UserError(
            f"{folder}: holds images that another model made than {model}; give theirs as --model, or make new ones "
            f"with python -m train.sample --model {model}"
        )
    return folder


def comparison(data, rows: torch.Tensor, generated: torch.Tensor, asked_for: torch.Tensor):
    """For a few users, real images of the split `rows` on the left, generated ones on the right."""
    labels, lines = user_labels(data.user_names), []
    for user in evenly(asked_for.unique(), GRID_USERS).tolist():
        real = data.images[evenly(rows[data.user_index[rows] == user], GRID_IMAGES)]
        made = generated[asked_for == user][:GRID_IMAGES]
        lines.append((labels[user], real, made))
    return real_and_generated(lines)


if __name__ == "__main__":
    cli.run(main)
