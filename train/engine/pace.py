"""What a run says of its pace: how long it will take, and that it is slowed where other programs have the cores."""

import sys
import time

from train.base.cores import Waiting
from train.base.progress import say
from train.base.units import duration, percent

STEPS = 20  # after which the pace is known
SLOWED = 0.3  # share of the time


class Pace:
    """Of a run that goes on after optimizer step `step`."""

    def __init__(self, title: str, step: int, total_steps: int):
        self.title, self.began_with, self.total_steps = title, step, total_steps
        self.began, self.waiting = time.monotonic(), Waiting()

    def look(self, step: int) -> None:
        """Called after each step; speaks once."""
        done, left = step - self.began_with, self.total_steps - step
        if done != STEPS or not left:
            return
        each = (time.monotonic() - self.began) / done
        say(f"{self.title}: about {duration(each * left)} for the {left:,} steps that are left, without validations")
        waited = self.waiting.share() or 0.0
        if waited > SLOWED:
            say(f"{self.title}: slowed: in {percent(waited)} of the time its threads waited for a core that other "
                "programs had; stop these, or start it again with fewer threads (OMP_NUM_THREADS=1)", sys.stderr)
