"""A stage's run in its folder: opened, refused where something does not fit, trained to its end, exported."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from train.base.files import tensors_hash
from train.base.processes import on_main, require_agreement
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.data.split import save_split
from train.engine.device import pick_device
from train.engine.micro_batch import MicroBatch
from train.engine.precision import native_precision
from train.engine.stage import Stage
from train.engine.stopping import in_one_piece
from train.engine.trainer import Trainer
from train.runs.checkpoint import require_disk
from train.runs.folder import SPLIT, locked, open_run, refuse_other_run

PlanMicroBatch = Callable[[Config, str, int, torch.device], int]
"""Chooses the micro-batch from the config, the stage's name, the number of users and the device."""
WatchMemory = Callable[[Trainer, MixedPrecision], Callable[[], None]]
"""Returns a function that looks at the memory of the training after each of its steps."""


@contextmanager
def prepared(
    stage_class: type[Stage], config: Config, plan: PlanMicroBatch, watch: WatchMemory
) -> Iterator[tuple[Trainer, Callable[[], None]]]:
    """A new run in the config's output_dir, or the one that goes on there, and what its `Trainer.run` takes.

    Nothing is written before all is known to fit. When the block ends, its steps taken, the model is exported.
    """
    require_agreement(lambda: {"config": config.as_yaml()})
    training = config.training(stage_class.name)
    folder, device = Path(training.output_dir), pick_device()
    precision = native_precision(device, training.mixed_precision)
    on_main(lambda: refuse_other_run(folder, config, stage_class.name))
    stage = stage_class.open(config)
    require_agreement(lambda: {"users": "\n".join(stage.data.user_names)})  # their number is a shape
    users = len(stage.data.user_names)
    micro_batch = MicroBatch(training, plan(stage.actual_config, stage.name, users, device))
    stage.build(device, precision)  # after the plan, which looks at a GPU that is still empty
    stage.choose_split(folder)
    stage.initialise()
    require_disk(training, stage.model, [p for learner in stage.learners()[1:] for p in learner.parameters])

    with locked(folder):
        trainer = Trainer(stage, micro_batch, device)
        print(f"{stage.title}: {users} users; {stage.split}; {trainer.total_steps:,} steps on {device}")
        print(f"{stage.title}: leaves final_model/, {stage.pictures}/ and progress.html in {folder}")
        trainer.resume()
        require_agreement(lambda: beginning(trainer))

        def begin() -> None:
            open_run(folder, config, stage.name)
            save_split(folder / SPLIT, stage.split, stage.data, config.data)

        on_main(begin)  # only now that nothing is refused any more
        begun = f"stopped before step {trainer.step + 1}; start again, and what was being prepared for it goes on"
        in_one_piece(stage.title, lambda: stage.begin(folder), begun)
        yield trainer, watch(trainer, precision)
        ended = f"all {trainer.total_steps} steps are saved; start again to do again what comes after them"
        with trainer.ema.averaged(stage.model) as averaged:
            print(in_one_piece(stage.title, lambda: on_main(lambda: stage.export(averaged)), ended))


def beginning(trainer: Trainer) -> dict[str, object]:
    """What all processes have to begin with: where they do not see the same folders, they may not."""
    hashes = {**trainer.inputs.hashes, "weights": tensors_hash(trainer.stage.model.state_dict().values())}
    return {"step": trainer.step, **{f"hash of the {what}": digest[:12] for what, digest in hashes.items()}}
