"""What a model is judged by: real images of training and held-out recordings, generated ones, reconstructions."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nets.vae import AutoencoderKL
from train.base.errors import BadArgument, nearest, require, some
from train.config.schema import Config
from train.data.dataset import UserImages, decode, evenly, load_images
from train.data.folders import scan
from train.data.split import Split, load_split, numbers_of_recordings
from train.data.store import digest
from train.judge.labelled import Labelled
from train.judge.pool import at_once
from train.judge.room import bytes_needed, say_what_it_takes
from train.runs.augmented import generated_only
from train.runs.final_model import split_path, trained_users
from train.runs.generated import are_mixed
from train.stages.vae import reconstructions

MOST_TESTED = 5000  # of the held-out images, and of those in --test_dir
MOST_KNOWN = 0.05  # of the images in --test_dir: training images or generated ones (blank pictures may be the same)
MOST_RECONSTRUCTED = 1000  # of the held-out images; the training images are reconstructed all


@dataclass(frozen=True, eq=False)
class TestSet:
    """Real images that nothing was trained on."""

    images: Labelled
    recordings: Tensor  # int64 (N,): images with the same number are of one recording


@dataclass(frozen=True, eq=False)
class Sifted:
    """What sifting takes of the generated images (train/judge/sifting.py)."""

    wanted: int  # images: as many as an arm takes that is not sifted
    rows: dict[int, Tensor]  # those taken, by the seed of a trial: int64, ascending
    left_out: dict[str, int]  # how many of all generated images, by reason


@dataclass(frozen=True, eq=False)
class Material:
    """All images that the judges work with; a user has one number everywhere."""

    user_names: list[str]
    training: Labelled
    """The real images of the training recordings."""
    training_recordings: Tensor
    training_files: list[str]
    reconstructed: Labelled
    """The VAE's reconstructions of `training`, in the same order."""
    generated: Labelled
    generated_files: list[str]
    held_out: TestSet
    """The real images of all other recordings."""
    held_out_shown: Tensor  # int64 (M,): rows of `held_out`, spread evenly, that were reconstructed
    held_out_reconstructed: Labelled  # (M,)
    other_conditions: TestSet | None
    """Real images of --test_dir."""
    mixed: bool = False
    """Whether the large structures of the generated images are other users' (train/judge/purpose.py)."""
    sifted: Sifted | None = None
    """None where sifting is not tried."""

    @property
    def num_users(self) -> int:
        return len(self.user_names)

    @property
    def tests(self) -> dict[str, TestSet]:
        """The test sets by name."""
        other = {"test_dir": self.other_conditions} if self.other_conditions else {}
        return {"held_out": self.held_out, **other}


def collect(
    model: Path, config: Config, generated: Path, test_dir: Path | None, vae: AutoencoderKL, device: torch.device
) -> Material:
    """Read the images, and let the VAE reconstruct real ones. UserError where they do not suffice for a judgement."""
    data, split = real_images(model, config)
    names = data.user_names
    untested = [name for user, name in enumerate(names) if user not in data.user_index[split.held_out]]
    require(not untested, f"{config.data.dir}: nothing of {some(untested)} is held out, since there is one recording "
            "only; add a second one and train again, or train without them")
    made = decode(scan(generated), replace(config.data, dir=str(generated)))  # beside reports and a picture of all
    chosen = generated_only(generated, made.paths)
    asked = min(len(split.held_out), MOST_TESTED) + MOST_RECONSTRUCTED + (MOST_TESTED if test_dir else 0)
    needed = bytes_needed(data.images.shape[1:], len(split.training), len(chosen), asked, at_once(device))
    say_what_it_takes(needed, len(data) + len(chosen))
    made = replace(
        made, images=made.images[chosen], user_index=made.user_index[chosen], paths=[made.paths[row] for row in chosen]
    )
    training, of_generated = labelled(data, split.training), of_users(made, names, generated)
    other = None
    if test_dir:
        none = f"test_dir {test_dir}: no such folder; give one that holds a folder per user"
        require(test_dir.is_dir(), none, BadArgument)
        found = load_images(replace(config.data, dir=str(test_dir)))
        recordings = numbers_of_recordings(found, range(len(found)), config.data)
        other = TestSet(of_users(found, names, test_dir), recordings)
        refuse_known(other.images, (training, of_generated), test_dir)
        other = few_enough(other, test_dir)
    out = split.held_out
    held_out = TestSet(labelled(data, out), numbers_of_recordings(data, out.tolist(), config.data))
    held_out = few_enough(held_out, config.data.dir)
    shown = evenly(torch.arange(len(held_out.images)), MOST_RECONSTRUCTED)
    return Material(
        user_names=names,
        training=training,
        training_recordings=numbers_of_recordings(data, split.training.tolist(), config.data),
        training_files=[data.paths[row] for row in split.training.tolist()],
        reconstructed=reconstructed(vae, training, device),
        generated=of_generated,
        generated_files=made.paths,
        held_out=held_out,
        held_out_shown=shown,
        held_out_reconstructed=reconstructed(vae, held_out.images.of(shown), device),
        other_conditions=other,
        mixed=are_mixed(generated),
    )


def real_images(model: Path, config: Config) -> tuple[UserImages, Split]:
    """The images that a model was trained on and tests are made with; UserError where they are others."""
    names = trained_users(model)
    require(len(names) > 1, f"{model}: knows a single user, {names[0]}; a classifier needs two to tell apart")
    data = load_images(config.data)
    require(data.user_names == names, f"{config.data.dir}: does not hold the users that {model} was trained on")
    return data, load_split(split_path(model), data, config.data)


def refuse_known(test: Labelled, known: Sequence[Labelled], folder: Path) -> None:
    """UserError where many images of --test_dir are pixel by pixel those that classifiers are trained on."""
    seen = {digest(image.numpy()) for one in known for image in one.images}
    count = sum(digest(image.numpy()) in seen for image in test.images)
    said = (f"test_dir {folder}: {count} of {len(test)} images in it are training images of this model or those to be "
             "judged; give recordings that nothing was trained on")  # fmt: skip
    require(count <= MOST_KNOWN * len(test), said, BadArgument)


def few_enough(test: TestSet, folder: Path | str) -> TestSet:
    """At most 5,000 of the images, spread evenly; that others are left out is said."""
    there = len(test.images)
    if there <= MOST_TESTED:
        return test
    print(f"{folder}: tests are made with {MOST_TESTED:,} of {there:,} images, spread evenly", file=sys.stderr)
    rows = evenly(torch.arange(there), MOST_TESTED)
    return TestSet(test.images.of(rows), test.recordings[rows])


def labelled(data: UserImages, rows: Tensor) -> Labelled:
    return Labelled(data.images[rows], data.user_index[rows])


def of_users(found: UserImages, names: list[str], folder: Path) -> Labelled:
    """The images of a folder with the numbers that its users have in `names`."""
    for name in found.user_names:
        knows = f"is no user of this model{nearest(name, names)}; it knows {some(names, 8)}"
        require(name in names, f"{folder}: the folder {name} {knows}")
    numbers = torch.tensor([names.index(name) for name in found.user_names])
    return Labelled(found.images[:], numbers[found.user_index])


def reconstructed(vae: AutoencoderKL, real: Labelled, device: torch.device) -> Labelled:
    """The same images as they come out of the VAE."""
    return Labelled(reconstructions(vae, real.images, device)[0], real.users)
