"""The judge that learns: a plain convolutional network which tells users apart.

Shapes: B batch, C channels, H W image, N images, U users.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.base.randomness import generator
from train.data.images import to_float
from train.judge.augment import augment
from train.judge.labelled import Labelled

WIDTHS = (16, 32, 64, 128)
BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 5e-3, 0.01
LOOK_EVERY, MOST_STEPS, LEAST_STEPS = 25, 1000, 100  # of the search for the number of steps
ENOUGH = 0.02  # nats by which the validation loss must fall to count as an improvement
VALIDATION_SHARE = 0.2
TEST_BATCH = 256


class Network(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, U): convolutions of stride 2, then the mean over the grid."""

    def __init__(self, channels: int, users: int):
        super().__init__()
        layers = []
        for c_in, c_out in pairwise((channels, *WIDTHS)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # B 128
        self.head = nn.Linear(WIDTHS[-1], users)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # B U

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of images, uint8 (N, C, H, W): float32 (N, 128), on the CPU."""
        batches = images.split(TEST_BATCH)
        return torch.cat([self.body(to_network(batch, device_of(self))).cpu() for batch in batches])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, U) of images, uint8 (N, C, H, W), on the CPU."""
        return self.head(self.features(images).to(device_of(self))).cpu()

    def recognised(self, images: Tensor) -> Tensor:
        """The most likely users (N,) of images, uint8 (N, C, H, W)."""
        return self.logits(images).argmax(1)


def device_of(network: Network) -> torch.device:
    return network.head.weight.device


def to_network(images: Tensor, device: torch.device) -> Tensor:
    return to_float(images.to(device)).contiguous(memory_format=torch.channels_last)


def new_network(channels: int, users: int, seed: int, device: torch.device) -> Network:
    """An untrained network, its weights drawn by `seed`; from torch's own generator, so not in two threads at once."""
    torch.manual_seed(generator(seed, "judge", 0).initial_seed())
    return Network(channels, users).to(device)


def train_network(
    network: Network, training: Labelled, steps: int, augmented: bool, seed: int, look: Callable[[], object]
) -> Network:
    """Train for a number of steps, and return it ready to judge; `look` is called after each step.

    The learning rate rises and falls once (Smith and Topin, arXiv 1708.07120), so a run of any length converges.
    """
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for images, users in batches(training, steps, augmented, seed, device_of(network)):
        learn(network, optimizer, images, users)
        schedule.step()
        look()
    return network.eval()


def learn(network: Network, optimizer: torch.optim.Optimizer, images: Tensor, users: Tensor) -> None:
    loss = F.cross_entropy(network(images), users)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def batches(training: Labelled, steps: int, augmented: bool, seed: int, device: torch.device):
    """Yields images (B, C, H, W) and users (B,): all images in a random order, then again in another one.

    A batch is always full, so that a small set has no batch of one image, which would have no statistics.
    """
    rng = generator(seed, "judge", 1)
    rounds = math.ceil(steps * BATCH / len(training))
    order = torch.cat([torch.randperm(len(training), generator=rng) for _ in range(rounds)])
    for rows in order[: steps * BATCH].split(BATCH):
        images = to_network(training.images[rows], device)
        yield augment(images, rng) if augmented else images, training.users[rows].to(device)


def enough_steps(network: Network, training: Labelled, augmented: bool, seed: int) -> int:
    """After how many steps a new network has stopped improving on a part of the training images that it does not see.

    That part is the last fifth of each user's. The search ends when a third of its steps (at least 50) have brought
    no better loss.
    """
    hidden = last_of_each(training.users, VALIDATION_SHARE)
    seen, unseen = training.of(~hidden), training.of(hidden)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE / 2, weight_decay=WEIGHT_DECAY, fused=True)
    best, best_step = math.inf, 0
    for step, batch in enumerate(batches(seen, MOST_STEPS, augmented, seed, device_of(network)), start=1):
        learn(network.train(), optimizer, *batch)
        if step % LOOK_EVERY == 0:
            loss = float(F.cross_entropy(network.eval().logits(unseen.images), unseen.users))
            if loss < best - ENOUGH:
                best, best_step = loss, step
            if step - best_step >= max(50, step / 3):
                break
    return max(best_step, LEAST_STEPS)


def last_of_each(users: Tensor, share: float) -> Tensor:
    """(N,) bool: the last entries of each user, `share` of them, at least one and not all."""
    hidden = torch.zeros_like(users, dtype=torch.bool)
    for user in users.unique():
        own = (users == user).nonzero().flatten()
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        hidden[own[len(own) - count :]] = True
    return hidden
