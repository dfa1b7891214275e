"""Bytes and counts are told in the unit that fits, and in the number of the noun."""

import pytest

from train.base.units import GiB, MiB, counted, gib, in_units, mib


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0.0 MiB"), (3 * MiB // 2, "1.5 MiB"), (GiB - MiB, "1023.0 MiB"), (GiB, "1.0 GiB"), (25 * GiB, "25.0 GiB")],
)
def test_bytes_are_in_gib_from_one_gib_on(count, said):
    assert in_units(count) == said


def test_a_cell_of_no_bytes_is_a_dash_and_thousands_are_apart():
    assert [mib(count) for count in (0, MiB // 2, 1234 * MiB)] == ["-", "0.5", "1,234.0"]
    assert [gib(count) for count in (0, GiB // 4)] == ["0.00", "0.25"]


def test_only_one_thing_is_singular():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
