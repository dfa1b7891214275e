"""A trained model: it makes images of its users, in memory or in a folder.

    model = UserDiffusion.load("runs/demo/ldm/final_model").to("cuda")
    images = model.sample(["ID1", "ID5"], per_user=4, seed=42, steps=20, guidance=1.5)
    images["ID1"][0].save("one.png")

Shapes: n images of a user, I channels, H W pixels; B of them at a time, Z h w latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.prediction import Evaluation
from diffusion.schedule import Schedule
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import BadArgument, nearest, require, some
from train.base.names import composed, path_of
from train.base.processes import joined, on_main, require_agreement
from train.base.progress import progress
from train.config.schema import Config
from train.data.images import save_picture, to_picture
from train.engine.device import device_named
from train.judge.purpose import for_a_classifier
from train.runs.final_model import TrainedLDM, config_path, load_ldm, require_steps, trained_users
from train.runs.folder import locked
from train.runs.generated import MOST_IMAGES, SEED, claim_folder, default_folder, image_paths, overview, settings_of
from train.stages import generate

IMAGES = 5  # of each user
Purpose = Literal["look", "augment"]
Kind = Literal["pillow", "tensor", "array", "latents"]


@dataclass(frozen=True, eq=False)
class SampledStep:
    """What a callback is told after each step of a batch of images."""

    images: list[tuple[str, int]]
    """The user and the number of each."""
    step: int
    """From 1 to `steps`."""
    steps: int
    latents: Tensor
    """B Z h w, scaled, at the noise level that the step has led to."""
    clean: Tensor
    """B Z h w, scaled: what they are without noise, as the network has estimated it in this step."""


@dataclass(frozen=True)
class Written:
    """Images in a folder."""

    folder: Path
    images: dict[str, list[Path]]
    """By user: the files of the images that were asked for."""
    there: int
    """How many of them were there already."""
    shown: str
    """Of grid.png, which shows the folder's images: in words, how many of them where that is not all."""


class UserDiffusion:
    def __init__(self, folder: Path, config: Config, trained: TrainedLDM, names_guidance: bool = False):
        """`names_guidance`: that of the config is asked for, and none is chosen in its place."""
        self.folder, self.config, self.trained, self.names_guidance = folder, config, trained, names_guidance

    @classmethod
    def load(
        cls, folder: str | PathLike[str], changes: Mapping[str, object] | None = None, *, config: Config | None = None
    ) -> "UserDiffusion":
        """The model in `final_model` or a checkpoint of an LDM run, in evaluation mode, on the CPU.

        With `changes`, as in {"sampling.batch_size": 32}, of its own config or the one that is given. UserError where
        there is no model, or its parts do not go together.
        """
        folder = path_of(folder)
        trained_users(folder)  # where there is no model, this says so
        config = Config.of(config or config_path(folder), changes)
        section = (changes or {}).get("sampling")
        named = "sampling.guidance" in (changes or {}) or (isinstance(section, Mapping) and "guidance" in section)
        return cls(folder, config, load_ldm(folder, config), named)

    def to(self, device: str | torch.device) -> "UserDiffusion":
        """The same model, moved to a device. UserError where that cannot be used."""
        self.trained.to(device_named(device))
        return self

    @property
    def users(self) -> list[str]:
        """Their names, in the order of their indices."""
        return self.trained.users

    @property
    def vae(self) -> AutoencoderKL:
        return self.trained.vae

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.trained.denoiser.unet

    @property
    def user_encoder(self) -> UserConditionEncoder:
        return self.trained.denoiser.user_encoder

    @property
    def schedule(self) -> Schedule:
        return self.trained.schedule

    # ---- images

    def sample(
        self, users: str | Sequence[str] | None = None, per_user: int = IMAGES, seed: int = SEED,
        steps: int | None = None, guidance: float | None = None, *, purpose: Purpose = "look", kind: Kind = "pillow",
        latents: Mapping[str, Tensor] | None = None, callback: Callable[[SampledStep], None] | None = None,
        **sampling: object,
    ) -> dict[str, list[Image.Image] | Tensor | np.ndarray]:  # fmt: skip
        """New images of each of the users (None: of all), by user: byte for byte those that `write` writes.

        `steps`, `guidance` and other keys of the config's section `sampling`, such as `sampler`, take the place of
        those in the config. `purpose` "augment" takes the guidance that serves a classifier, which is chosen once for
        a model, where none is given.

        `kind`: Pillow images, or, on the CPU, a uint8 "tensor" (n, I, H, W), a uint8 "array" (n, H, W, I) or scaled
        "latents" (n, Z, h, w), of which `decode` makes images. `latents` of each user, (n, Z, h, w) standard normal,
        are the noise to begin with in place of the seed's. `callback` is called after each step of each batch.
        UserError, or its BadArgument, where one of these cannot be.
        """
        require(kind in get_args(Kind), f"kind {kind!r}: must be one of {', '.join(get_args(Kind))}", BadArgument)
        wanted, seed = self.images_of(users, per_user), whole("seed", seed, 0)
        config = self.config_with(steps, guidance, purpose, sampling).sampling
        noise = None if latents is None else self.noise_of(latents, wanted, per_user)
        found = []
        with progress(total=len(wanted) * config.steps, desc="sampling", unit="step", leave=False) as bar:
            for batch in generate.batches_of(wanted, config.batch_size):
                names = [(self.users[user], number) for user, number in batch]

                def after_step(step: int, x: Tensor, now: Evaluation, names: list[tuple[str, int]] = names) -> None:
                    bar.update(len(names))
                    if callback:
                        callback(SampledStep(names, step, config.steps, x, now.x0))

                start = None if noise is None else torch.stack([noise[image] for image in batch])
                made = generate.sample_latents(
                    self.trained.denoiser, self.schedule, config, batch, seed, start, after_step
                )
                found.append(made.cpu() if kind == "latents" else generate.decode(self.vae, made))
        by_user = torch.cat(found).split(per_user)  # n ... of each
        names = [self.users[user] for user, number in wanted if number == 0]
        return {name: shown(images, kind) for name, images in zip(names, by_user, strict=True)}

    def decode(self, latents: Tensor, kind: Kind = "pillow") -> list[Image.Image] | Tensor | np.ndarray:
        """Images of scaled latents (n, Z, h, w)."""
        device = next(self.vae.parameters()).device
        batches = latents.to(device).split(self.config.sampling.batch_size)
        return shown(torch.cat([generate.decode(self.vae, batch) for batch in batches]), kind)

    @joined()
    def write(
        self, users: str | Sequence[str] | None = None, per_user: int = IMAGES, seed: int = SEED,
        steps: int | None = None, guidance: float | None = None, *, purpose: Purpose = "look",
        folder: str | PathLike[str] | None = None, **sampling: object,
    ) -> Written:  # fmt: skip
        """Write the images of `sample` as USER/generated_000.png, ..., where they are not there yet, and grid.png.

        `folder` is by default one in generated/ beside the model that is named after settings and seed. Several
        processes divide the images. UserError where it holds anything but images of the same settings.
        """
        wanted, seed = self.images_of(users, per_user), whole("seed", seed, 0)
        config = self.config_with(steps, guidance, purpose, sampling)
        settings = settings_of(config.sampling, seed, self.trained)
        require_agreement(lambda: settings)
        output = default_folder(self.folder, settings) if folder is None else path_of(folder)
        on_main(lambda: claim_folder(Path(config.data.dir), output, settings))

        def draw_overview() -> str:
            picture, words = overview(output, self.users, config.data)
            save_picture(picture, output / "grid.png")
            return words

        paths = image_paths(output, self.users, wanted)
        with locked(output, "writing"):
            there = generate.fill(output, self.trained, config.sampling, seed, paths)
            words = on_main(draw_overview)
        by_user: dict[str, list[Path]] = {}
        for (user, _), path in paths.items():
            by_user.setdefault(self.users[user], []).append(path)
        return Written(output, by_user, there, words)

    # ---- what is asked for

    def images_of(self, users: str | Sequence[str] | None, per_user: int) -> list[generate.Image]:
        """So many images of each of the users, as (user's index, number), user by user in their order."""
        asked = self.users if users is None else [users] if isinstance(users, str) else users
        names = [composed(str(name)) for name in asked]
        require(names, "users: none is named; give at least one, or None for all", BadArgument)
        places = {name: place for place, name in enumerate(self.users)}
        for name in names:
            knows = f"not a user of this model{nearest(name, places)}; it knows {some(self.users, 8)}"
            require(name in places, f"users {name!r}: {knows}", BadArgument)
        whole("per_user", per_user, 1, MOST_IMAGES)
        return [(places[name], number) for name in dict.fromkeys(names) for number in range(per_user)]

    def config_with(
        self, steps: int | None, guidance: float | None, purpose: Purpose, sampling: Mapping[str, object],
        choose: bool = True,
    ) -> Config:  # fmt: skip
        """The model's config with these; without `choose`, what serves a classifier only where that is known."""
        given = {"steps": steps, "guidance": guidance}
        changes = {key: value for key, value in given.items() if value is not None} | dict(sampling)
        config = Config.of(self.config, {f"sampling.{key}": value for key, value in changes.items()})
        require_steps(self.folder, config, self.schedule)
        kinds = get_args(Purpose)
        require(purpose in kinds, f"purpose {purpose!r}: must be one of {', '.join(kinds)}", BadArgument)
        if purpose == "augment" and guidance is None and not self.names_guidance:
            return for_a_classifier(self.folder, config, self.trained, choose)
        return config

    def noise_of(
        self, latents: Mapping[str, Tensor], wanted: Sequence[generate.Image], per_user: int
    ) -> dict[generate.Image, Tensor]:
        """The noise Z h w of each image."""
        unet, given = self.unet.config, {composed(name): noise for name, noise in latents.items()}
        shape = (per_user, unet.latent_channels, unet.sample_size, unet.sample_size)
        for name in dict.fromkeys(self.users[user] for user, _ in wanted):
            noise = given.get(name)
            fits = isinstance(noise, Tensor) and noise.shape == shape and noise.is_floating_point()
            must = f"must be a tensor of floating-point numbers of the shape {shape}"
            require(fits, f"latents of {name!r}: {must}", BadArgument)
        return {(user, number): given[self.users[user]][number] for user, number in wanted}


def shown(images: Tensor, kind: Kind) -> list[Image.Image] | Tensor | np.ndarray:
    """Pixels (n, I, H, W) as this kind; latents stay as they are."""
    if kind == "pillow":
        return [to_picture(pixels) for pixels in images]
    return images.permute(0, 2, 3, 1).numpy() if kind == "array" else images


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """The argument as Python's int. BadArgument where it is none, or out of range."""
    require(isinstance(value, Integral), f"{name} {value!r}: must be a whole number", BadArgument)
    require(value >= least, f"{name} {value}: must be at least {least}", BadArgument)
    too_many = f"{name} {value}: must be at most {most}; take several seeds for more"
    require(most is None or value <= most, too_many, BadArgument)
    return int(value)
