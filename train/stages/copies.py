"""Is a generated image a copy of a training image of its user?

Two distances. In pixels: sqrt(2 (1 - r)), with r the correlation of two images where they fit best, at any shift of
up to 4 pixels along both axes, so neither a shift nor brightness nor contrast hides a copy; both are smoothed before,
since noise is white and what differs between two recordings is not. In features, where there are any: Euclidean.

What is near is learned from the training images alone: how near does one come to those of its user's other
recordings? A generated image that comes nearer than 99% of them is suspected, and accused if it is far nearer still,
or three times as near to this image as to the nearest one of another recording (a ratio in the spirit of Carlini et
al. 2023, "Extracting Training Data from Diffusion Models", section 5.1).

Shapes: Q images that are asked about, T training images, C channels, H W pixels, D values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from train.data.dataset import evenly

SIDE = 64  # pixels; images of twice this or more are shrunk by averages first
BOX, SHIFT, STEP = 5, 4, 2  # pixels: side of the smoothing box; farthest shift; between the pixels that are compared
# Levels at which a training image may be cut, darkest and brightest: a copy that was made brighter is white where it
# would be brighter than white, which is no change of contrast any more.
CUT = ((0, 255), (0, 205), (0, 165), (25, 255))
FAINT = 0.5  # levels; where a smoothed image deviates less than this from its mean, there is little to compare
RARE = 0.01  # share of training images that come as near to other recordings as a suspected image comes
FAR_NEARER, RATIO = 0.7, 1 / 3  # of the distance that makes suspect; of the nearest to the second nearest
DIMENSION = 4  # of a user's images as a cloud of points, roughly
MOST = 500  # images of a user that are asked about

Distances = Callable[[Tensor, Tensor], Tensor]  # of images or features (Q, ...) and (T, ...), to (Q, T)
Features = Callable[[Tensor], Tensor]  # of images (N, C, H, W), to (N, D)


@dataclass(frozen=True, eq=False)
class Copies:
    """What was found of each generated image that was checked: (N,) each."""

    rows: Tensor  # int64, ascending: which generated image
    nearest: Tensor  # int64: the training image of its user that is nearest in pixels
    distance: Tensor  # to it, 0 to 2; about sqrt(2) for images that have nothing in common
    ratio: Tensor  # of that distance to the one from the nearest image of another recording
    threshold: Tensor  # the distance below which an image of this user is suspected
    accused: Tensor  # bool: by its distances in pixels, or by those in features


class Originals:
    """Training images, and how near to those of its user an image must come to be suspected."""

    def __init__(self, images: Tensor, users: Tensor, recordings: Tensor, features: Features | None = None):
        """Images uint8 (T, C, H, W), on the CPU; `recordings` (T,) numbers theirs.

        `features` maps images to (N, D); without it only pixels are compared.
        """
        self.known = {int(user): (users == user).nonzero().flatten() for user in users.unique()}
        self.spaces = [_Space(pixel_distances, lambda images: images, images, self.known, recordings)]
        if features:
            self.spaces.append(
                _Space(torch.cdist, lambda images: features(images).double(), images, self.known, recordings)
            )

    def find_copies(self, generated: Tensor, users: Tensor) -> Copies:
        """Compare generated images, uint8 (N, C, H, W), on the CPU, with the training images of the same user.

        Up to 500 images of a user are checked, those of users without training images are not. An image without
        contrast is no copy. Where no user has two training images, nothing says what is near, and nothing is accused.
        """
        asked = {user: evenly((users == user).nonzero().flatten(), MOST) for user in self.known}
        compared = [space.compare(generated, asked) for space in self.spaces]
        accused = torch.stack([columns[-1] for columns in compared]).any(0)
        rows, (*in_pixels, _) = torch.cat(list(asked.values())), compared[0]
        order = rows.argsort()
        return Copies(*(column[order] for column in (rows, *in_pixels, accused)))


class _Space:
    """The training images, to be compared with others by one kind of distances."""

    def __init__(
        self, distances: Distances, see: Features, images: Tensor, known: dict[int, Tensor], recordings: Tensor
    ):
        """Distances are between what they `see` of images; `known` are the rows of each user."""
        self.distances, self.see, self.known, self.recordings = distances, see, known, recordings
        self.training = see(images)
        self.limits = usual_distances(distances, self.training, known, recordings)

    def compare(self, generated: Tensor, asked: dict[int, Tensor]) -> list[Tensor]:
        """Nearest, distance, ratio, threshold and accused of the rows `asked` of each user, user after user."""
        seen, found = self.see(generated), []
        for user, rows in self.known.items():
            between = self.distances(seen[asked[user]], self.training[rows])
            nearest, distance, ratio = nearest_two(between, self.recordings[rows])
            limit = torch.full_like(distance, self.limits[user])
            accused = (distance < limit) & ((distance < FAR_NEARER * limit) | (ratio < RATIO))
            found.append((rows[nearest], distance, ratio, limit, accused))
        return [torch.cat(column) for column in zip(*found, strict=True)]


def closest_pairs(copies: Copies, count: int) -> Tensor:
    """Places in `copies` of the `count` most suspect images: the accused first, then by distance over threshold."""
    suspicion = (copies.distance / copies.threshold.clamp(min=1e-12)).tolist()
    innocent = (~copies.accused).tolist()
    order = sorted(range(len(suspicion)), key=lambda place: (innocent[place], suspicion[place]))
    return torch.tensor(order[:count], dtype=torch.int64)


def nearest_two(distances: Tensor, recordings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of distances (Q, T): the nearest of the T images, its distance, and its ratio to the second nearest, (Q,) each.

    The second nearest is one of another recording, since neighbours in a recording are alike, and may overlap. Where
    there is only one recording, it is any other image; where there is only one image, the ratio is 1.
    """
    distance, nearest = distances.min(1)
    labels = _apart(recordings)
    second = distances.masked_fill(labels[nearest][:, None] == labels, torch.inf).min(1).values
    return nearest, distance, torch.where(second.isinf(), 1.0, distance / second.clamp(min=1e-12))


def usual_distances(
    distances: Distances, training: Tensor, known: dict[int, Tensor], recordings: Tensor
) -> dict[int, float]:
    """By user: the distance to the nearest of other recordings that 1% of the training images stay below.

    The smaller one of that of all users' images and of this user's; 0 where nobody has a second image. Users with a
    single recording, whose neighbours are nearer, only count where nobody has two.
    """
    several = any(len(recordings[rows].unique()) > 1 for rows in known.values())
    own = {}
    for user, rows in known.items():
        labels = recordings[rows] if several else _apart(recordings[rows])
        asked = evenly(torch.arange(len(rows)), MOST)
        between = distances(training[rows[asked]], training[rows])
        nearest = between.masked_fill(labels[asked][:, None] == labels, torch.inf).min(1).values
        # One recording less to be near to: the nearest of n points is at about n^(-1 / dimension).
        fewer = (1 - 1 / len(labels.unique())) ** (1 / DIMENSION)
        own[user] = fewer * nearest[nearest.isfinite()]
    everybody = torch.cat(list(own.values()))
    common = float(everybody.quantile(RARE)) if len(everybody) else 0.0
    return {user: min(common, float(usual.quantile(RARE))) if len(usual) else common for user, usual in own.items()}


def _apart(recordings: Tensor) -> Tensor:
    """Labels (T,) of images that are not neighbours: the recordings, or each image its own where there is but one."""
    return recordings if len(recordings.unique()) > 1 else torch.arange(len(recordings))


def pixel_distances(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(2 (1 - r)), r the largest correlation of smoothed images (Q, C, H, W) and (T, C, H, W) over the shifts.

    The inside of each of `b` is looked for in `a`, so what comes in at the borders of a shifted copy has no part.
    """
    a, cut = _smoothed(a), [_smoothed(b.clamp(*levels)) for levels in CUT]
    shift = min(SHIFT, min(a.shape[2:]) // 8)
    height, width = (side - 2 * shift for side in a.shape[2:])
    there = (slice(shift, shift + height, STEP), slice(shift, shift + width, STEP))
    inside = torch.stack([_normalised(x[:, :, *there]) for x in cut])  # 4 T D
    best = torch.full((len(b), len(a)), -1.0)
    for y, x in product(range(2 * shift + 1), repeat=2):
        window = _normalised(a[:, :, y : y + height : STEP, x : x + width : STEP])  # Q D
        best = torch.maximum(best, (inside @ window.T).amax(0))  # T Q
    return (2 * (1 - best.T)).clamp(min=0).sqrt()


def _smoothed(images: Tensor) -> Tensor:
    """Images as float32, of less than 2 SIDE pixels a side, their pixels means over a box that lies within them."""
    images = F.avg_pool2d(images.float(), [max(1, side // SIDE) for side in images.shape[2:]])
    return F.avg_pool2d(images, BOX if min(images.shape[2:]) >= 16 else 1, stride=1)


def _normalised(images: Tensor) -> Tensor:
    """Images as vectors (N, D) of mean 0 and length 1, or less where they are all but constant."""
    x = images.flatten(1)
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True).clamp(min=FAINT * x.shape[1] ** 0.5)
