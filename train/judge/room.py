"""The memory that a judgement takes, said before it is taken.

Images stay in memory, and not in their store, because the judge in closed form learns from all of an arm's images at
once, and what it sees of an image takes as much again: to read them in batches would not even halve the sum.
"""

import sys

from train.base.progress import say
from train.base.units import GiB, counted, in_units
from train.judge.spectra import COLUMNS, ROWS

WORTH_SAYING = GiB
NUMBER = 20  # bytes for each feature of an image while a ridge is fitted: float32, and twice float64 (measured: 16)


def bytes_needed(shape: tuple[int, int, int], real: int, generated: int, asked: int, at_once: int) -> int:
    """At the peak, for images of this shape (C, H, W): `real` ones that train, and reconstructions of all of them,
    `generated` ones, and others that judges are `asked` about. So many arms are fitted `at_once`, of which the largest
    has all that train, four generated ones for each at most, and an augmented copy of each of these.
    """
    channels, height, width = shape
    image, features = channels * height * width, min(ROWS, height) * min(COLUMNS, width // 2 + 1)
    arm = 2 * (real + min(generated, 4 * real))
    return image * (2 * real + generated + asked) + at_once * arm * (image + NUMBER * features)


def say_what_it_takes(needed: int, images: int) -> None:
    """Where that is much; and where the machine has not that much to give."""
    free = memory_free()
    lacks = free is not None and needed > free
    if needed > WORTH_SAYING or lacks:
        have = f", and {in_units(free)} are free: judge with --quick, or fewer images (--images)" if lacks else ""
        say(f"judging {counted(images, 'image')} takes up to about {in_units(needed)} of memory{have}", sys.stderr)


def memory_free() -> int | None:
    """Bytes that programs can still have; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return None
