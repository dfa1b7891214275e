"""The VAE's stage with judges beside it, who say what the reconstructions keep of what tells users apart.

They look and never touch: a run ends in the same weights as without them. What is held out they do not see either.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from nets.vae import AutoencoderKL
from train.base.files import kept_in, tensors_hash, write_json
from train.base.progress import say
from train.base.units import counted, duration
from train.engine.micro_batch import MicroBatch
from train.judge.kept import ENOUGH, LEAST, by_network, by_ridge, in_halves
from train.stages.vae import VAEStage

SHARE = 0.05  # of a run's time, at most, that judging takes before the end
MARGIN = 1.5  # a busy machine may take longer than last time, and the first judging than its reconstructions
ACCURACIES = "on_real", "on_reconstructions", "of_reconstructions"  # those of `Kept`
A_WHILE = 10  # seconds; what can take longer is announced


class TimeShare:
    """Counts the time of something that may take a share of all time since now."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic):
        self.share, self.clock = share, clock
        self.began, self.spent, self.last = clock(), 0.0, None

    def affords(self, seconds: float) -> bool:
        return self.spent + seconds <= self.share * (self.clock() - self.began)

    @contextmanager
    def spending(self) -> Iterator[None]:
        began = self.clock()
        yield
        self.last = self.clock() - began
        self.spent += self.last


class JudgedVAEStage(VAEStage):
    def begin(self, folder: Path) -> None:
        super().begin(folder)
        self.halves = in_halves(self.data, self.split.training, self.config.data)
        self.judging = TimeShare(SHARE)
        self.said = False  # that judging has been left out

    def validate(self, averaged: AutoencoderKL, step: int, micro_batch: MicroBatch) -> dict[str, float]:
        """What is kept, and, where there is time, the accuracies of the judge in closed form."""
        metrics = super().validate(averaged, step, micro_batch)
        if not self.halves:
            return metrics
        seconds = MARGIN * (self.judging.last or self.seconds_per_image * len(self.halves.rows))
        if self.judging.affords(seconds):
            with self.judging.spending():
                found = by_ridge(self.halves, self.reconstructions(averaged, self.halves.rows)[0])
            names = (f"judge_{name}" for name in ACCURACIES)
            return metrics | dict(zip(names, found.accuracies, strict=True))
        if not self.said:
            self.said = True
            say(f"VAE: step {step}: reconstructions are not judged yet: that may take {duration(seconds)}, more than "
                f"{SHARE:.0%} of the time so far; at the end they are", sys.stderr)  # fmt: skip
        return metrics

    def reconstructions(self, vae: AutoencoderKL, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        began = time.monotonic()
        found = super().reconstructions(vae, rows)
        self.seconds_per_image = (time.monotonic() - began) / len(rows)
        return found

    def export(self, vae: AutoencoderKL) -> str:
        """Write `final_model`, then say what both judges recognise, and warn where that is too little."""
        summary = super().export(vae)
        if not self.halves:
            print(f"VAE: too few training images to judge its reconstructions: that takes {LEAST}, of two users, and "
                  "two of each")  # fmt: skip
            return summary
        decoded, _, _ = self.reconstructions(vae, self.halves.rows)
        judged = self.judged(decoded).values()
        images = counted(len(self.halves.rows), "image")
        print(f"VAE: judged by classifiers of one half of {images} of training recordings, asked about the other half:")
        for one in judged:
            print(f"VAE: {one['says']}")
        lost = [one["says"] for one in judged if one["has_lost"]]
        if lost:
            print(f"VAE: warning: {self.too_little(lost)}", file=sys.stderr)
        return summary

    def judged(self, decoded: Tensor) -> dict[str, dict]:
        """What each judge says of these reconstructions; a run that has ended and is started again has it already."""
        halves, path = self.halves, Path(self.training.output_dir) / "judged.json"
        key = tensors_hash([decoded, halves.real.images, halves.real.users, halves.second], str(self.config.seed))

        def of_these(kept: dict) -> dict[str, dict] | None:
            said = {name: {what: one[what] for what in ("says", "has_lost")} for name, one in kept.items()}
            return said if all(one["of"] == key for one in kept.values()) else None

        said = kept_in(path, of_these)
        if said:
            return said
        both = by_network(halves, decoded, self.config.seed, self.device, announce), by_ridge(halves, decoded)
        found = {
            one.judge: dict(zip(ACCURACIES, one.accuracies, strict=True))
            | {"says": one.in_words(), "has_lost": one.has_lost, "of": key}
            for one in both
        }
        write_json(path, found)
        return found

    def too_little(self, lost: list[str]) -> str:
        """A warning with what the judges say."""
        vae, length, said = self.model.config, self.training.length_key, "; ".join(lost)
        return (
            f"its reconstructions lose what tells users apart, and images made with it will too: {said}. That is less "
            f"than {ENOUGH:.0%} of the accuracy on real images. Raise vae.latent_channels (now {vae.latent_channels}) "
            f"or vae_loss.spectral_weight (now {self.config.vae_loss.spectral_weight:g}), or take a number out of "
            f"vae.channels (now {list(vae.channels)}), which is one halving less, and train in another output_dir; or "
            f"raise vae_training.{length} (now {getattr(self.training, length)})"
        )


def announce(seconds: float) -> None:
    if seconds > A_WHILE:
        print(f"VAE: the model is saved; judging its reconstructions takes at most {duration(seconds)}")
