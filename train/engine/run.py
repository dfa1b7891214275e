"""A stage's run in its folder: opened, refused where something does not fit, trained to its end, exported."""

from collections.abc import Callable
from pathlib import Path

import torch

from train.base.processes import on_main
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.data.split import save_split
from train.engine.device import pick_device
from train.engine.micro_batch import MicroBatch
from train.engine.precision import native_precision
from train.engine.stage import Stage
from train.engine.trainer import Trainer
from train.runs.checkpoint import require_disk
from train.runs.folder import SPLIT, locked, open_run, refuse_other_run

PlanMicroBatch = Callable[[Config, str, int, torch.device], int]
"""Chooses the micro-batch from the config, the stage's name, the number of users and the device."""
WatchMemory = Callable[[Trainer, MixedPrecision], Callable[[], None]]
"""Returns a function that looks at the memory of the training after each of its steps."""


def train_stage(stage_class: type[Stage], config: Config, plan: PlanMicroBatch, watch: WatchMemory) -> None:
    """Train, or go on training, in the config's output_dir. Nothing is written there before all is known to fit."""
    training = config.training(stage_class.name)
    folder, device = Path(training.output_dir), pick_device()
    precision = native_precision(device, training.mixed_precision)
    on_main(lambda: refuse_other_run(folder, config, stage_class.name))
    stage = stage_class.open(config)
    users = len(stage.data.user_names)
    micro_batch = MicroBatch(training, plan(stage.actual_config, stage.name, users, device))
    stage.build(device, precision)  # after the plan, which looks at a GPU that is still empty
    stage.choose_split(folder)
    require_disk(training, stage.model, [p for learner in stage.learners()[1:] for p in learner.parameters])

    with locked(folder):
        trainer = Trainer(stage, micro_batch, device)
        print(f"{stage.title}: {users} users; {stage.split}; {trainer.total_steps:,} steps on {device}")
        trainer.resume()

        def begin() -> None:
            open_run(folder, config, stage.name)
            save_split(folder / SPLIT, stage.split, stage.data, config.data)

        on_main(begin)  # only now that nothing is refused any more
        trainer.save_first()
        stage.begin(folder)
        trainer.run(watch(trainer, precision))
        with trainer.ema.averaged(stage.model) as averaged:
            print(on_main(lambda: stage.export(averaged)))
