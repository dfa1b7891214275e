"""Pixels of the pictures are where the numbers say."""

import numpy as np
import pytest
import torch
from PIL import ImageFont

from train.runs import pictures
from train.runs.pictures import (
    COLOURS,
    FRAME,
    INK,
    PAPER,
    decade_ticks,
    image_grid,
    legible,
    line_chart,
    linear_ticks,
    real_and_generated,
    text_font,
    user_labels,
    wrapped,
)

WIDTH, HEIGHT = 720, 220  # of a panel
ACROSS, DOWN = 70 + 4, 66 + 4  # from an image of a grid to the next: the image, its frame and a gap
TOP_OF_GRID = 20  # below one line of headings
LEFT, RIGHT, TOP, BOTTOM = 68, WIDTH - 24, 48, 24 + HEIGHT - 8  # of its curves


@pytest.fixture(params=["DejaVu", "Pillow"], autouse=True)
def font(request, monkeypatch):
    """Each law holds with the font that is there, and without it."""
    def unless_named(font, *args, opened=ImageFont.truetype, **options):
        if font == "DejaVuSans.ttf":
            raise OSError("cannot open resource")
        return opened(font, *args, **options)

    if request.param == "Pillow":
        monkeypatch.setattr(ImageFont, "truetype", unless_named)
    for cached in (pictures.text_font, pictures.has_glyph):
        cached.cache_clear()
    yield
    for cached in (pictures.text_font, pictures.has_glyph):
        cached.cache_clear()


def flat(value, channels=3, height=66, width=70):
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_whole_and_in_its_place(channels):
    images = [torch.randint(0, 256, (channels, 66, 70), dtype=torch.uint8) for _ in range(5)]
    grid = pixels(image_grid([("ID1", images[:3]), ("ID22", [images[3], None, images[4]])]))
    assert grid.shape[0] == 2 * DOWN
    margin = grid.shape[1] - 3 * ACROSS
    assert margin > 0
    for image, (row, column) in zip(images, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)], strict=True):
        y, x = row * DOWN + 1, margin + column * ACROSS + 1
        expected = image.expand(3, 66, 70).permute(1, 2, 0).numpy()
        assert np.array_equal(grid[y : y + 66, x : x + 70], expected)
    assert (grid[DOWN:, margin + ACROSS : margin + 2 * ACROSS] == PAPER).all()  # an empty cell
    assert (grid[68:DOWN] == PAPER).all()  # between the rows


@pytest.mark.parametrize("value", [0, 255])
def test_white_and_black_images_are_told_from_each_other(value):
    grid = pixels(image_grid([("a", [flat(value)] * 2), ("b", [flat(value)] * 2)]))
    margin = grid.shape[1] - 2 * ACROSS
    across, down = grid[33, margin:], grid[:, margin + 35]
    for line, length, pitch in ((across, 70, ACROSS), (down, 66, DOWN)):
        framed = (line == FRAME).all(axis=1).nonzero()[0].tolist()
        assert framed == [0, length + 1, pitch, pitch + length + 1]


def test_an_image_below_64_pixels_is_enlarged_by_a_whole_factor():
    image = torch.randint(0, 256, (3, 20, 28), dtype=torch.uint8)
    grid = pixels(image_grid([("a", [image])]))
    assert np.array_equal(grid[1:61, -87:-3], image.permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1))


def test_labels_and_headings_are_beside_the_images_not_on_them():
    rows = [("a long label", [flat(200), flat(200)]), ("b", [flat(200), flat(200)])]
    plain, headed = pixels(image_grid(rows)), pixels(image_grid(rows, ["real", "made"]))
    assert headed.shape[0] == plain.shape[0] + TOP_OF_GRID
    assert np.array_equal(headed[TOP_OF_GRID:], plain)
    assert (headed[:TOP_OF_GRID] < 100).any()
    margin = plain.shape[1] - 2 * ACROSS
    assert (plain[:66, :margin] < 100).any()
    assert (plain[1:67, margin + 1 : margin + 71] == 200).all()


def test_a_heading_ends_where_its_column_does():
    rows = [("a", [flat(200), flat(200)])]
    grid = pixels(image_grid(rows, ["Balinese_drawer01", "W" * 100]))
    margin, top = grid.shape[1] - 2 * ACROSS, grid.shape[0] - DOWN
    assert (grid[:top, margin + 72 : margin + ACROSS] == PAPER).all()
    assert (grid[:top, margin + ACROSS + 72 :] == PAPER).all()


def test_a_heading_over_several_columns_stands_once_above_a_line():
    rows = [("a", [flat(200)] * 4)]
    grid = pixels(image_grid(rows, ["one", "one", "one", "two"]))
    margin, top = grid.shape[1] - 4 * ACROSS, grid.shape[0] - DOWN
    written = [(grid[: top - 4, margin + i * ACROSS : margin + (i + 1) * ACROSS] < 100).any() for i in range(4)]
    assert written == [True, False, False, True]
    ruled = (grid[top - 2] == INK).all(axis=1).nonzero()[0]
    assert (ruled == np.arange(margin, margin + 3 * ACROSS - 2)).all()


def test_a_name_is_broken_into_lines_before_it_is_cut():
    for name in ("Balinese_drawer01", "Maria-Magdalena", "a name in words"):
        lines = wrapped(name, 72)
        assert len(lines) > 1
        assert "".join(lines) == name.replace(" ", "") or " ".join(lines) == name
        assert all(text_font().getlength(line) <= 72 for line in lines)
    assert wrapped("Balinese_drawer01", 72) == ["Balinese_", "drawer01"]
    assert wrapped("ID1", 64) == ["ID1"]
    assert wrapped("", 64) == []


def test_a_text_without_room_keeps_both_ends():
    text = "x" * 120 + "7"
    lines = wrapped(text, 64)
    assert len(lines) == 3
    assert max(text_font().getlength(line) for line in lines) <= 64
    assert (lines[0][0], lines[-1][-1]) == ("x", "7")
    assert "…" in "".join(lines)
    assert image_grid([(text, [flat(0)])]).width < 300


def test_real_and_generated_images_are_in_two_separate_blocks():
    real, made = flat(100), flat(200)
    rows = [("a", [real], [made] * 2), ("b", [real] * 3, [made]), ("c", [], [made] * 2)]
    grid = pixels(real_and_generated(rows))
    margin = grid.shape[1] - 5 * ACROSS
    values = grid[TOP_OF_GRID + 33 :: DOWN, margin + 35 :: ACROSS, 0]
    empty = PAPER[0]
    assert values.tolist() == [
        [100, empty, empty, 200, 200], [100, 100, 100, 200, empty], [empty, empty, empty, 200, 200]
    ]  # fmt: skip
    headings = [(grid[:16, margin + i * ACROSS : margin + i * ACROSS + 72] < 100).any() for i in range(5)]
    assert headings == [True, False, False, True, False]


def test_what_is_drawn_has_letters_and_no_boxes():
    names = ["ID1", "Ünïcødé", "Žofie", "中文", "walker 🚶", "it's"]
    assert all(legible(label) == label for label in user_labels(names))
    assert user_labels(names)[0] == "ID1"
    assert user_labels(names)[3:] == ["user 4", "user 5 walker", "it's"]
    assert legible("Žofie") in ("Žofie", "Zofie")
    assert wrapped("中文", 64) == ["?"]


def curve_rows(chart, colour, column) -> np.ndarray:
    """Where in one column of pixels a curve passes."""
    return (pixels(chart)[TOP : BOTTOM + 2, column] == colour).all(axis=1).nonzero()[0] + TOP


def test_a_curve_passes_where_its_values_lie_on_a_linear_scale():
    chart = line_chart("x", [{"loss": [(0, 1.0), (50, 2.0), (100, 5.0)]}], WIDTH, HEIGHT)
    for share_x, share_y in ((0.25, 0.125), (0.5, 0.25), (0.75, 0.625)):
        rows = curve_rows(chart, COLOURS[0], round(LEFT + share_x * (RIGHT - LEFT)))
        assert rows.mean() == pytest.approx(BOTTOM - share_y * (BOTTOM - TOP), abs=2)


def test_values_over_more_than_a_decade_have_a_logarithmic_scale():
    chart = line_chart("x", [{"loss": [(0, 100.0), (100, 0.01)]}], WIDTH, HEIGHT)
    rows = curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2)
    assert rows.mean() == pytest.approx((BOTTOM + TOP) / 2, abs=2)


def test_a_value_of_zero_keeps_the_scale_linear():
    chart = line_chart("x", [{"loss": [(0, 0.0), (50, 1.0), (100, 100.0)]}], WIDTH, HEIGHT)
    rows = curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2)
    assert rows.mean() == pytest.approx(BOTTOM - 0.01 * (BOTTOM - TOP), abs=2)


def test_two_curves_have_two_colours_and_share_one_scale():
    chart = line_chart("x", [{"a": [(0, 1.0), (10, 1.0)], "b": [(0, 2.0), (10, 2.0)]}], WIDTH, HEIGHT)
    middle = (LEFT + RIGHT) // 2
    assert curve_rows(chart, COLOURS[0], middle).mean() == pytest.approx(BOTTOM, abs=2)
    assert curve_rows(chart, COLOURS[1], middle).mean() == pytest.approx(TOP, abs=2)


def test_curves_that_coincide_are_both_seen():
    same = [(0, 1.0), (50, 2.0), (100, 5.0)]
    chart = line_chart("x", [{"loss": same, "reconstruction": same}], WIDTH, HEIGHT)
    for column in range(LEFT + 20, RIGHT - 20, 50):
        under, over = (curve_rows(chart, colour, column) for colour in COLOURS[:2])
        assert under.size
        assert over.size
        assert under.min() < over.min() <= over.max() < under.max()


def test_a_point_not_finite_is_left_out_and_a_lone_one_is_a_dot():
    chart = line_chart("x", [{"a": [(0, 1.0), (5, float("nan")), (10, 3.0)], "b": [(10, 2.0)]}], WIDTH, HEIGHT)
    middle = curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2)
    assert middle.mean() == pytest.approx((BOTTOM + TOP) / 2, abs=2)
    assert curve_rows(chart, COLOURS[1], RIGHT).mean() == pytest.approx((BOTTOM + TOP) / 2, abs=2)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e12, 1e-12])
def test_a_constant_of_any_size_is_a_level_line(value):
    chart = line_chart("x", [{"a": [(0, value), (10, value)]}], WIDTH, HEIGHT)
    columns = [curve_rows(chart, COLOURS[0], x).tolist() for x in range(LEFT + 5, RIGHT - 5, 50)]
    assert columns[0]
    assert all(rows == columns[0] for rows in columns)


@pytest.mark.parametrize("panel", [{}, {"a": []}, {"a": [(0, float("nan"))]}, {"a": [(3, float("inf"))]}])
def test_a_chart_without_points_is_empty_paper(panel):
    chart = pixels(line_chart("", [panel], WIDTH, HEIGHT))
    assert chart.shape == (48, WIDTH, 3)
    assert (chart == PAPER).all()


def test_every_panel_has_its_own_scale_and_all_share_the_steps():
    one = {"loss": [(0, 0.1), (100, 0.2)]}, {"psnr": [(50, 10.0), (100, 20.0)]}
    chart = line_chart("x", one, WIDTH, HEIGHT)
    assert chart.height == 48 + 2 * HEIGHT
    assert curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2).mean() == pytest.approx((TOP + BOTTOM) / 2, abs=2)
    lower = (pixels(chart)[TOP + HEIGHT :] == COLOURS[1]).all(axis=2)
    assert lower.any(axis=0).nonzero()[0].max() == pytest.approx(RIGHT, abs=2)
    line = lower[:, (LEFT + 3 * RIGHT) // 4].nonzero()[0]
    assert line.mean() == pytest.approx((BOTTOM - TOP) / 2, abs=2)


def test_ticks_are_round_and_enclose_the_values():
    assert linear_ticks(0.07, 0.5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert linear_ticks(1, 5, least_step=1) == [1, 2, 3, 4, 5]
    assert linear_ticks(0, 1, least_step=1) == [0, 1]
    assert linear_ticks(0, 11_063, least_step=1) == [0, 5000, 10000, 15000]
    assert decade_ticks(0.06, 0.7) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert decade_ticks(0.01, 100) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert decade_ticks(1e-12, 3e9)[0] <= 1e-12 < 3e9 <= decade_ticks(1e-12, 3e9)[-1]
    assert len(decade_ticks(1e-12, 3e9)) < 8
