"""A plain convolutional classifier of users, which judges generated images.

Shapes: B batch, I image channels, H W image, U users.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.base.progress import progress
from train.base.randomness import batch_rows, generator, steps_per_epoch
from train.data.dataset import UserImages
from train.data.images import to_float

EPOCHS, BATCH, LEARNING_RATE = 8, 32, 2e-3


class Classifier(nn.Sequential):
    """Images (B, I, H, W) to logits (B, U): four convolutions of stride 2, then the mean over the grid."""

    def __init__(self, image_channels: int, users: int):
        widths = (image_channels, 32, 64, 128, 128)
        layers = []
        for c_in, c_out in pairwise(widths):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], users))


def train_classifier(data: UserImages, rows: Tensor, seed: int, device: torch.device) -> Classifier:
    """A classifier trained on the images `rows` (N,)."""
    torch.manual_seed(generator(seed, "classifier").initial_seed())
    model = Classifier(data.images.shape[1], len(data.user_names)).to(device).train()
    steps = EPOCHS * steps_per_epoch(len(rows), BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for step in progress(range(steps), desc="training the classifier", unit="step"):
        batch = rows[batch_rows(seed, step, len(rows), BATCH)]
        if len(batch) == 1:  # a single image has no batch statistics
            continue
        loss = F.cross_entropy(model(data.batch(batch).to(device)), data.user_index[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict_users(model: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """The most likely users (N,) of images (N, I, H, W) in uint8."""
    return torch.cat([model(to_float(batch.to(device))).argmax(1).cpu() for batch in images.split(64)])
