"""When a run ends before its last step: a signal asks for it, or the time that it was given is over."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from train.base.errors import Interrupted, Stopped
from train.base.interruption import interrupt
from train.base.processes import gather, rank

T = TypeVar("T")

WISHES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last one: the terminal has been closed
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
        self.can_wait = False  # what is done just now, see `unless_asked`

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, SIGTERM, SIGINT and SIGHUP are taken as a wish to stop, but for those that are ignored.

        nohup ignores SIGHUP, and a shell's script SIGINT in what it starts in the background.
        """
        heard = [number for number in WISHES if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in heard}
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
        if self.can_wait:
            self.can_wait = False
            interrupt()

    def unless_asked(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where a signal comes before its end, or has come before it began.

        torchrun kills 30 seconds after a signal, and by then the run has to be saved: this can wait for the next start.
        Of several processes, the first decides; the others go on to where they hear of it.
        """
        first = rank() == 0
        try:
            self.can_wait = first
            return None if self.received and first else work()
        except Interrupted:
            return None
        finally:
            self.can_wait = False

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


def in_one_piece(title: str, work: Callable[[], T], left: str) -> T:
    """What `work` returns, which is done before or after the steps, and of which no part is kept.

    Stopped where a signal comes meanwhile, with a sentence about what is `left` to do.
    """
    stop = Stop(max_hours=None)
    with stop.listening():
        done = stop.unless_asked(lambda: (work(),))
        reason = next(filter(None, gather(stop.reason())), None)
    if reason:
        raise Stopped(f"{title}: {reason[0]}: {left}", reason[1])
    return done[0]
