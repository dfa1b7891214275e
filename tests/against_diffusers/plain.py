"""What an able user of `diffusers` would write: a VAE, a UNet, images of each user. Nothing of this project is in it.

    python tests/against_diffusers/plain.py EXPERIMENT.json OUTPUT_FOLDER

The recipe is the one that this project was asked to replace: the UNet predicts the noise, one image at a time and four
to an optimizer step, the VAE encodes in the loop, AdamW at a constant rate, no moving average, DDIM in 50 steps with
guidance. The rest is as the examples of `diffusers` have it; the VAE's loss is that of `train_autoencoderkl.py` without
the perceptual and adversarial terms, which need weights from elsewhere.

Shapes: N images, C channels, S x S pixels, Z h w latents, D the width of a user's embedding.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

LEARNING_RATE, ACCUMULATION, MAX_GRAD_NORM = 1e-4, 4, 1.0
KL_SCALE = 1e-6  # both terms are sums over an image
CONDITION_DROPOUT = 0.1
STEPS, GUIDANCE, AT_ONCE = 50, 2.0, 16
# Those of Stable Diffusion.
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
LossOf = Callable[[Tensor, Tensor], Tensor]  # of images (1, C, S, S) and their users (1,)


def read(path: str, side: int, channels: int) -> Tensor:
    """An image (C, S, S) in [-1, 1]."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("L" if channels == 1 else "RGB").resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).reshape(side, side, channels).permute(2, 0, 1) / 127.5 - 1


def train(parameters: Iterable[nn.Parameter], data: TensorDataset, loss_of: LossOf, seconds: float) -> int:
    """Train for so long; how many optimizer steps that were."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    loader = DataLoader(data, batch_size=1, shuffle=True)
    ending, seen, steps = time.monotonic() + seconds, 0, 0
    while True:
        for images, users in loader:
            (loss_of(images, users) / ACCUMULATION).backward()
            seen += 1
            if seen % ACCUMULATION:
                continue
            nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if time.monotonic() >= ending:
                return steps


def train_vae(vae: AutoencoderKL, data: TensorDataset, seconds: float) -> int:
    def loss_of(images: Tensor, _: Tensor) -> Tensor:
        images = images.to(vae.device)
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        return F.mse_loss(decoded, images, reduction="sum") + KL_SCALE * posterior.kl().sum()

    steps = train(vae.parameters(), data, loss_of, seconds)
    vae.eval().requires_grad_(False)
    latents = [vae.encode(images.to(vae.device)).latent_dist.sample() for images, _ in DataLoader(data, AT_ONCE)]
    vae.register_to_config(scaling_factor=1 / torch.cat(latents).std().item())
    return steps


def train_unet(
    unet: UNet2DConditionModel, users: nn.Embedding, vae: AutoencoderKL, data: TensorDataset, seconds: float
) -> int:
    """The last row of the embedding `users` (U + 1, D) is that of nobody."""
    scheduler, nobody = DDPMScheduler(**BETAS, clip_sample=False), users.num_embeddings - 1

    def loss_of(images: Tensor, asked: Tensor) -> Tensor:
        with torch.no_grad():
            latents = vae.encode(images.to(vae.device)).latent_dist.sample() * vae.config.scaling_factor  # 1 Z h w
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        dropped = torch.rand(len(asked)) < CONDITION_DROPOUT
        context = users(torch.where(dropped, nobody, asked).to(latents.device))[:, None]  # 1 1 D
        predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        return F.mse_loss(predicted, noise)

    steps = train([*unet.parameters(), *users.parameters()], data, loss_of, seconds)
    unet.eval().requires_grad_(False)
    return steps


@torch.no_grad()
def generate(
    unet: UNet2DConditionModel, users: nn.Embedding, vae: AutoencoderKL, user: int, count: int
) -> list[Image.Image]:
    """So many images of a user; at most AT_ONCE."""
    scheduler, nobody = DDIMScheduler(**BETAS, **DDIM), users.num_embeddings - 1
    scheduler.set_timesteps(STEPS)
    side = unet.config.sample_size
    latents = torch.randn(count, unet.config.in_channels, side, side).to(vae.device)
    context = users(torch.tensor([nobody] * count + [user] * count, device=vae.device))[:, None]  # 2N 1 D
    for timestep in scheduler.timesteps:
        without, asked = unet(torch.cat([latents] * 2), timestep, context).sample.chunk(2)
        latents = scheduler.step(without + GUIDANCE * (asked - without), timestep, latents).prev_sample
    decoded = vae.decode(latents / vae.config.scaling_factor).sample  # N C S S
    pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else one) for one in pixels]


def run(experiment: dict, out: Path) -> dict:
    """Train both models and write the images: `vae/`, `unet/`, `images/USER/generated_000.png`.

    An experiment has "files" and "images" by user (paths to train on; how many to generate), the "resolution", the
    models' settings "vae" and "unet", for how many "seconds" each is trained, and a "seed". Returned are each
    model's parameters, optimizer steps and images per step, its seconds without reading and saving, and those of
    "sampling".
    """
    torch.manual_seed(experiment["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = AutoencoderKL(**experiment["vae"]).to(device)
    unet = UNet2DConditionModel(**experiment["unet"]).to(device)
    users = nn.Embedding(len(experiment["files"]) + 1, unet.config.cross_attention_dim).to(device)

    files = [(path, user) for user, own in enumerate(experiment["files"].values()) for path in own]
    images = [read(path, experiment["resolution"], vae.config.in_channels) for path, _ in files]
    data = TensorDataset(torch.stack(images), torch.tensor([user for _, user in files]))
    trainings = {
        "vae": lambda seconds: train_vae(vae, data, seconds),
        "unet": lambda seconds: train_unet(unet, users, vae, data, seconds),
    }
    parameters = {"vae": [*vae.parameters()], "unet": [*unet.parameters(), *users.parameters()]}
    found = {
        "parameters": {stage: sum(p.numel() for p in own) for stage, own in parameters.items()},
        "images_per_step": dict.fromkeys(parameters, ACCUMULATION), "steps": {}, "seconds": {},
    }  # fmt: skip
    for stage, training in trainings.items():
        began = time.monotonic()
        found["steps"][stage] = training(experiment["seconds"][stage])
        found["seconds"][stage] = time.monotonic() - began
        print(f"diffusers: {stage}: {found['steps'][stage]:,} steps in {found['seconds'][stage]:.0f} s", flush=True)
    vae.save_pretrained(out / "vae")
    unet.save_pretrained(out / "unet")

    print(f"diffusers: sampling {sum(experiment['images'].values()):,} images", flush=True)
    began = time.monotonic()
    for number, (user, count) in enumerate(experiment["images"].items()):
        folder = out / "images" / user
        folder.mkdir(parents=True)
        parts = [min(AT_ONCE, count - first) for first in range(0, count, AT_ONCE)]
        made = [image for part in parts for image in generate(unet, users, vae, number, part)]
        for at, image in enumerate(made):
            image.save(folder / f"generated_{at:03d}.png")
    found["seconds"]["sampling"] = time.monotonic() - began
    return found


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])), indent=2))
