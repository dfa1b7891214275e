"""Real trainings of a tiny experiment, to compare the account with."""

from pathlib import Path

import torch

from tests.tiny import tiny, tiny_images, tiny_vae
from train.data.split import Split
from train.engine.micro_batch import MicroBatch
from train.engine.trainer import Trainer
from train.stages.ldm import LDMStage
from train.stages.vae import VAEStage

CPU = torch.device("cpu")
TRAINING_IMAGES, VALIDATION_IMAGES = 8, 4
EPOCHS = 3  # of two steps


def tiny_trainer(stage: str, folder: Path, *settings: str) -> Trainer:
    """On the CPU, just before its first step."""
    section = f"{stage}_training"
    config = tiny("data.resolution=32", f"{section}.output_dir={folder}", f"{section}.num_epochs={EPOCHS}", *settings)
    data = tiny_images(TRAINING_IMAGES + VALIDATION_IMAGES, config.data.resolution)
    vae = tiny_vae(config)
    made = VAEStage(config, data, vae.train(), None) if stage == "vae" else LDMStage(config, data, vae)
    made.build(CPU, "no")
    rows = torch.arange(len(data.images))
    made.split = Split(train=rows[:TRAINING_IMAGES], validation=rows[TRAINING_IMAGES:], held_out=rows[:0])
    made.begin(folder)
    return Trainer(made, MicroBatch(made.training, made.training.batch_size), CPU)
