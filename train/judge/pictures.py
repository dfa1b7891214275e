"""The pictures of the report: real, reconstructed and generated images side by side, and suspected copies."""

import torch
from PIL import Image

from train.data.dataset import evenly
from train.judge.material import Material
from train.runs.pictures import image_grid, user_labels

USERS, IMAGES = 6, 3


def side_by_side(material: Material) -> Image.Image:
    """A row for each of some users: held-out real images, their reconstructions, and generated images."""
    real, decoded, made = material.held_out.images, material.held_out_reconstructed, material.generated
    labels, rows = user_labels(material.user_names), []
    for user in evenly(made.users.unique(), USERS).tolist():
        own = evenly((decoded.users == user).nonzero().flatten(), IMAGES)
        images = (
            real.images[material.held_out_shown[own]], decoded.images[own],
            made.images[evenly((made.users == user).nonzero().flatten(), IMAGES)],
        )  # fmt: skip
        padded = [[*block, *[None] * (IMAGES - len(block))] for block in images]
        rows.append((labels[user], [image for block in padded for image in block]))
    blank = [""] * (IMAGES - 1)
    return image_grid(rows, ["real, held out", *blank, "the same, reconstructed", *blank, "generated", *blank])


def closest_copies(material: Material, pairs: list[dict]) -> Image.Image | None:
    """The closest pairs, as measured by `copies`: generated images above the training images nearest to them."""
    if not pairs:
        return None
    rows = torch.tensor([(pair["generated_row"], pair["training_row"]) for pair in pairs])
    labels = user_labels(material.user_names)
    above, below = material.generated.images[rows[:, 0]], material.training.images[rows[:, 1]]
    headings = [labels[user] for user in material.generated.users[rows[:, 0]].tolist()]
    return image_grid([("generated", list(above)), ("nearest real", list(below))], headings)
