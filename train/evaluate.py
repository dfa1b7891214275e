"""Judge generated images: `python -m train.evaluate --model runs/demo/ldm/final_model`.

A classifier is trained to recognise users in the real training images. How often does it recognise the user in
real images that it has not seen, and how often in generated ones?
"""

from pathlib import Path

import torch

from train.base.errors import require
from train.base.files import write_json
from train.base.units import counted
from train.config import cli
from train.config.schema import Config
from train.data.dataset import load_images
from train.data.images import read_image, save_picture
from train.data.split import load_split
from train.engine.device import pick_device
from train.runs.final_model import config_path, load_ldm, split_path, trained_users
from train.runs.generated import SEED, default_folder, image_files, require_images_of, settings_of
from train.runs.pictures import user_comparison
from train.stages.classifier import predict_users, train_classifier

COMPARED_USERS, COMPARED_IMAGES = 6, 5


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("evaluate", __doc__.splitlines()[0], "ldm")
    parser.add_argument("--model", type=Path, required=True, help="final_model of an LDM run")
    parser.add_argument("--images", type=Path, help="folder of train.sample (default: the one it takes by itself)")
    args = parser.parse_args(argv)
    names = trained_users(args.model)
    config = cli.read_config(args, "ldm", default=config_path(args.model))
    folder = images_of(args.model, config, args.images)
    files = [(user, path) for user, name in enumerate(names) for path in image_files(folder, name)]
    require(files, f"{folder}: holds no image of a user of {args.model}; make some with python -m train.sample")

    data = load_images(config.data)
    require(data.user_names == names, f"{config.data.dir}: does not hold the users that {args.model} was trained on")
    split = load_split(split_path(args.model), data, config.data)
    device = pick_device()
    classifier = train_classifier(data, split.train, config.seed, device)
    generated = torch.stack([read_image(path, config.data) for _, path in files])
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
    picture = user_comparison(data, split.validation, generated, asked_for, COMPARED_USERS, COMPARED_IMAGES)
    save_picture(picture, folder / "generated_and_real.png")
    weakest = min(result["users"], key=result["users"].get)
    print(
        f"recognised: {result['recognised_generated']:.1%} of {counted(len(on_generated), 'generated image')}, "
        f"{result['recognised_real']:.1%} of {counted(len(on_real), 'real image')} held out "
        f"(chance {result['chance']:.1%}); least well {weakest}, {result['users'][weakest]:.0%}"
    )
    print(f"look at {folder}/generated_and_real.png; every figure is in {folder}/evaluation.json")


def images_of(model: Path, config: Config, given: Path | None) -> Path:
    """The folder of this model's images: the one that is given, or the one that train.sample makes without flags."""
    trained = load_ldm(model, config)
    settings = settings_of(config.sampling, SEED, (trained.vae, trained.denoiser))
    folder = given or default_folder(model, settings)
    what = "is not a folder that train.sample wrote" if given else "this model's images are not there yet"
    require_images_of(model, settings, folder, what)
    return folder


if __name__ == "__main__":
    cli.run(main)
