"""When a run ends before its last step: a signal asks for it, or the time that it was given is over."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NOT_DONE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again; Make stops at it


class Stop:
    """Tells after each step whether to stop, and why. The first signal waits for the step; a second Ctrl-C does not."""

    def __init__(self, max_hours: float | None):
        self.max_hours = max_hours
        self.last = time.monotonic()
        self.deadline = None if max_hours is None else self.last + 3600 * max_hours
        self.longest = 0.0
        """Seconds between two questions at most: a step, and perhaps a validation and a save."""
        self.received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, SIGTERM and SIGINT are taken as a wish to stop."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        repeated = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun passes a terminal's Ctrl-C on once more
        if self.received and number == signal.SIGINT and not repeated:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def reason(self, last: bool = False) -> tuple[str, int] | None:
        """Ask once after each step: why to stop now, with the exit status; None to go on.

        With `max_hours`, the run stops while one more step as long as the longest would still end in time; after the
        `last` there is no more step.
        """
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        if self.received:
            return self.received.name, 128 + self.received
        if self.deadline is not None and not last and now + self.longest > self.deadline:
            return f"max_hours {self.max_hours:g} would be over after another step", NOT_DONE
        return None
