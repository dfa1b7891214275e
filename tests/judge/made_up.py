"""Material for judges, put together by hand."""

import torch
from torch import Tensor

from train.judge.labelled import Labelled
from train.judge.material import Material, TestSet


def material(
    training: Labelled, generated: Labelled, held_out: TestSet, recordings: Tensor | None = None,
    reconstructed: Labelled | None = None, users: int | None = None, other: TestSet | None = None,
) -> Material:  # fmt: skip
    """Reconstructions are the originals themselves, and each training image is a recording, unless given."""
    count, test = len(training), held_out.images
    return Material(
        user_names=[f"ID{user + 1}" for user in range(users or int(training.users.max()) + 1)],
        training=training,
        training_recordings=torch.arange(count) if recordings is None else recordings,
        training_files=[f"ID{user + 1}/{row}.png" for row, user in enumerate(training.users.tolist())],
        reconstructed=reconstructed or training,
        generated=generated,
        generated_files=[f"ID{user + 1}/generated_{row}.png" for row, user in enumerate(generated.users.tolist())],
        held_out=held_out,
        held_out_shown=torch.arange(len(test)),
        held_out_reconstructed=test,
        other_conditions=other,
    )


def numbered(users: Tensor, first: int = 0) -> Labelled:
    """Images of a single pixel whose level is their number, from `first`."""
    numbers = torch.arange(first, first + len(users))
    return Labelled(numbers.to(torch.uint8).reshape(-1, 1, 1, 1), users)


def numbers(images: Labelled) -> Tensor:
    """Of `numbered` images."""
    return images.images.flatten().long()
