"""How many images go through the model at once, where memory decides.

A window cut into smaller micro-batches gives the same step, so it can be tried again: all its chance is drawn
beforehand, and nothing has changed until its gradient is complete.
"""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from train.base.errors import UserError
from train.base.progress import say
from train.engine.trainer import TrainingConfig

T = TypeVar("T")


class MicroBatch:
    """The micro-batch of a run: as planned, then halved, with `auto_batch`, whenever it does not fit."""

    def __init__(self, training: TrainingConfig, size: int):
        self.auto, self.window = training.auto_batch, training.window
        self.size = size

    def fitting(self, attempt: Callable[[int], T]) -> T:
        """attempt(size), tried again from its beginning with half the size each time it runs out of memory.

        UserError where the size must not be halved, or is 1.
        """
        while True:
            try:
                return attempt(self.size)
            except torch.OutOfMemoryError:
                pass  # and not in here: this handler's traceback still holds what the attempt computed
            gc.collect()
            torch.cuda.empty_cache()
            self._halve()

    def _halve(self) -> None:
        if self.size == 1:
            raise UserError(
                "out of memory with a single image at once; set gradient_checkpointing to true, use a smaller model, "
                "or a larger card (python -m train.memcheck shows what takes how much)"
            )
        if not self.auto:
            raise UserError(
                f"out of memory with a batch_size of {self.size}; start again with auto_batch true, or half the "
                "batch_size and twice the gradient_accumulation_steps, or gradient_checkpointing true: the run goes on"
            )
        was, self.size = self.size, -(-self.size // 2)
        say(
            f"out of memory: {self.size} images at once from here on, not {was}, in {-(-self.window // self.size)} "
            f"micro-batches; a step is still of {self.window} images, and this one is taken again",
            sys.stderr,
        )

    def state_dict(self) -> dict[str, int]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.auto:
            self.size = min(self.size, state["size"])
