"""How many images go through the model at once, where memory decides.

A batch cut into smaller micro-batches gives the same step, so it can be tried again: all its random numbers are drawn
beforehand, and no weight has changed until its gradient is complete.
"""

import sys
from collections.abc import Callable
from typing import TypeVar

from train.base.errors import SEE_MEMCHECK, out_of_memory, require
from train.base.progress import say
from train.config.sections import TrainingConfig
from train.engine.device import free_memory

T = TypeVar("T")


class MicroBatch:
    """The micro-batch of a run: as planned, then halved, with `auto_batch`, whenever it does not fit."""

    def __init__(self, training: TrainingConfig, size: int):
        self.auto, self.images_per_step = training.auto_batch, training.images_per_step
        self.size = size
        self.reason = ""
        """Why the last attempt that failed did so, in brackets."""

    def attempt(self, function: Callable[..., T], *args: object) -> T | None:
        """function(*args); None where memory ran out, and what the function had taken is free again."""
        try:
            return function(*args)
        except (RuntimeError, MemoryError) as error:
            said = out_of_memory(error)
            if not said:
                raise
            self.reason = f" ({said})"
        free_memory()  # not in the handler, whose traceback still holds what the function computed
        return None

    def halve(self) -> None:
        """After it did not fit. UserError where it must not be halved, or is 1."""
        require(
            self.size > 1,
            "out of memory with a single image at once; set gradient_checkpointing to true, use a smaller model, "
            f"or a larger card; {SEE_MEMCHECK}{self.reason}",
        )
        require(
            self.auto,
            f"out of memory with a batch_size of {self.size}; start again with auto_batch true, or half the "
            "batch_size and twice the gradient_accumulation_steps, or gradient_checkpointing true: the run goes on"
            + self.reason,
        )
        was, self.size = self.size, -(-self.size // 2)
        pieces = -(-self.images_per_step // self.size)
        say(
            f"out of memory: {self.size} images at once from here on, not {was}, in {pieces} micro-batches; a step is "
            f"still of {self.images_per_step} images, and this one is taken again{self.reason}",
            sys.stderr,
        )

    def state_dict(self) -> dict[str, int]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.auto:
            self.size = min(self.size, state["size"])
