"""The model card, `README.md` of a saved model: what it was trained on, how, and whether its images help.

Its head is the metadata that the model hub of `diffusers` reads, so that the folder can be uploaded as it is. What is
written by hand stays: only the blocks between two comments are written anew.
"""

from pathlib import Path

from train.base.files import replacing
from train.base.units import counted
from train.config.schema import Config
from train.data.dataset import UserImages
from train.data.split import Split

CARD = "README.md"
TITLES = {"vae": "A VAE of images", "ldm": "A latent diffusion model of images"}
TAGS = {"vae": ("autoencoder",), "ldm": ("latent-diffusion", "class-conditional-image-generation")}
TRAINING, VERDICT = "training", "verdict"
NOT_JUDGED = "Whether the images help a classifier is not known yet: train.evaluate finds out, and writes it here."
HEAD = """---
library_name: diffusers
tags:
{tags}
# license: fill in, such as cc-by-4.0
---

# {title} of {users}

What the pictures show, who took them, and what may be done with them: fill in.
"""


def write_card(new: Path, old: Path, stage: str, config: Config, data: UserImages, split: Split) -> None:
    """Write into the folder `new` the card of the folder `old`, if it has one, with what is known of this training."""
    path = old / CARD
    users, tags = counted(len(data.user_names), "user"), "\n".join(f"- {tag}" for tag in TAGS[stage])
    head = HEAD.format(title=TITLES[stage], users=users, tags=tags)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else head
    rows = (f"| {name} | {fact} |" for name, fact in facts(stage, config, data, split).items())
    text = with_block(text, TRAINING, "\n".join(["| trained on | |", "| --- | --- |", *rows]))
    text = with_block(text, VERDICT, NOT_JUDGED) if stage == "ldm" else text
    save(text, new / CARD)


def write_verdict(model: Path, sentences: list[str]) -> None:
    """Write what the judge says of the model's images into its card; a checkpoint has none."""
    path = model / CARD
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        save(with_block(text, VERDICT, "\n\n".join(sentences)), path)


def save(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def facts(stage: str, config: Config, data: UserImages, split: Split) -> dict[str, str]:
    """The training in numbers, by their names."""
    training, schedule, sampling = config.training(stage), config.schedule, config.sampling
    steps = counted(training.total_steps(len(split.train)), "step")
    _, channels, side, _ = data.images.shape
    found = {
        "users": f"{len(data.user_names):,}",
        "real images": str(split),
        "pixels": f"{counted(channels, 'channel')}, {side}x{side}",
        "latents": f"{counted(config.vae.latent_channels, 'channel')}, {config.latent_side}x{config.latent_side}",
        "length": f"{steps}, each of {counted(training.images_per_step, 'image')}",
        "precision": {"no": "fp32"}.get(training.mixed_precision, training.mixed_precision),
        "weights": f"moving average with decay {training.ema_decay:g}",
    }
    if stage == "ldm":
        found |= {
            "noise schedule": f"{schedule.kind}, {schedule.num_train_timesteps:,} timesteps",
            "prediction": schedule.prediction,
            "sampling": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        }
    return found


def with_block(text: str, name: str, content: str) -> str:
    """The text with this block in place of its block of that name, or at its end."""
    begin, end = f"<!-- {name}: written by the program, and written anew -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    if not found:
        return f"{text.rstrip()}\n\n{begin}\n{content}\n{end}\n"
    _, ended, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after if ended else rest}"  # without its end nothing is taken away
