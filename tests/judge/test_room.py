"""What a judgement takes of memory is said before it is taken, where that is much or more than there is."""

import pytest

from train.base.units import GiB
from train.judge import room


@pytest.mark.parametrize(
    ("needed", "free", "said"),
    [
        (GiB // 2, GiB, ""), (GiB // 2, None, ""), (2 * GiB, None, "judging 9 images takes up to about 2.0 GiB"),
        (2 * GiB, 4 * GiB, "takes up to about 2.0 GiB of memory\n"), (2 * GiB, GiB, "and 1.0 GiB are free: judge with"),
        (GiB // 2, GiB // 4, "takes up to about 512.0 MiB of memory, and 256.0 MiB are free"),
    ],
)  # fmt: skip
def test_much_memory_is_said_and_more_than_there_is(monkeypatch, capsys, needed, free, said):
    monkeypatch.setattr(room, "memory_free", lambda: free)
    room.say_what_it_takes(needed, 9)
    heard = capsys.readouterr().err
    assert said in heard if said else not heard


def test_three_hundred_thousand_pictures_take_more_than_most_machines_have():
    """Of 128x128, and four times as many generated: each image counted by hand."""
    image, seen = 3 * 128 * 128, 20 * 64 * 33
    at_once = 2 * 5 * 300_000 * (image + seen)
    needed = room.bytes_needed((3, 128, 128), 300_000, 1_200_000, 0, 1)
    assert needed == 6 * 300_000 * image + at_once
    assert needed > 256 * GiB
