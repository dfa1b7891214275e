"""Pixels of the pictures are where the numbers say."""

import numpy as np
import pytest
import torch
from PIL import Image

from train.errors import UserError
from train.pictures import COLOURS, INK, PAPER, image_grid, line_chart, save_picture, to_image

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 60, WIDTH - 16, 26, HEIGHT - 34  # of the chart's plot


def flat(value, channels=3, height=10, width=14):
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_the_tensors_own_pixels_with_rows_as_rows(channels):
    tensor = torch.randint(0, 256, (channels, 5, 9), dtype=torch.uint8)
    image = to_image(tensor)
    assert image.size == (9, 5)
    assert np.array_equal(pixels(image), tensor.expand(3, 5, 9).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_whole_and_in_its_place(channels):
    images = [torch.randint(0, 256, (channels, 10, 14), dtype=torch.uint8) for _ in range(5)]
    grid = pixels(image_grid([("ID1", images[:3]), ("ID22", images[3:])]))
    assert grid.shape[0] == 2 * (10 + 2)
    margin = grid.shape[1] - 3 * (14 + 2)
    assert margin > 0
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        y, x = row * 12, margin + column * 16
        expected = image.expand(3, 10, 14).permute(1, 2, 0).numpy()
        assert np.array_equal(grid[y : y + 10, x : x + 14], expected)
    assert (grid[12:22, margin + 32 : margin + 46] == PAPER).all()  # the second row has two images only
    assert (grid[10:12] == PAPER).all()  # between the rows


def test_labels_and_headings_stand_beside_the_images_and_not_on_them():
    rows = [("a long label", [flat(200), flat(200)]), ("b", [flat(200), flat(200)])]
    plain, headed = pixels(image_grid(rows)), pixels(image_grid(rows, ["real", "made"]))
    assert headed.shape[0] == plain.shape[0] + 16
    assert np.array_equal(headed[16:], plain)
    assert (headed[:16] == INK).all(axis=2).any()
    margin = plain.shape[1] - 2 * 16
    assert (plain[:10, :margin] == INK).all(axis=2).any()
    assert (plain[:10, margin : margin + 14] == 200).all()


def curve_rows(chart, colour, column) -> np.ndarray:
    """Where in one column of pixels a curve passes."""
    return (pixels(chart)[TOP : BOTTOM + 2, column] == colour).all(axis=1).nonzero()[0] + TOP


def test_a_curve_passes_where_its_values_lie_on_a_linear_scale():
    chart = line_chart("x", {"loss": [(0, 1.0), (50, 2.0), (100, 5.0)]}, WIDTH, HEIGHT)
    for share_x, share_y in ((0.25, 0.125), (0.5, 0.25), (0.75, 0.625)):
        rows = curve_rows(chart, COLOURS[0], round(LEFT + share_x * (RIGHT - LEFT)))
        assert rows.mean() == pytest.approx(BOTTOM - share_y * (BOTTOM - TOP), abs=2)


def test_values_that_span_more_than_a_decade_lie_on_a_logarithmic_scale():
    chart = line_chart("x", {"loss": [(0, 100.0), (100, 0.01)]}, WIDTH, HEIGHT)
    rows = curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2)
    assert rows.mean() == pytest.approx((BOTTOM + TOP) / 2, abs=2)


def test_a_value_of_zero_keeps_the_scale_linear():
    chart = line_chart("x", {"loss": [(0, 0.0), (50, 1.0), (100, 100.0)]}, WIDTH, HEIGHT)
    rows = curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2)
    assert rows.mean() == pytest.approx(BOTTOM - 0.01 * (BOTTOM - TOP), abs=2)


def test_two_curves_have_two_colours_and_share_one_scale():
    chart = line_chart("x", {"a": [(0, 1.0), (10, 1.0)], "b": [(0, 2.0), (10, 2.0)]}, WIDTH, HEIGHT)
    middle = (LEFT + RIGHT) // 2
    assert curve_rows(chart, COLOURS[0], middle).mean() == pytest.approx(BOTTOM, abs=2)
    assert curve_rows(chart, COLOURS[1], middle).mean() == pytest.approx(TOP, abs=2)


def test_a_point_that_is_not_finite_is_left_out_and_a_lone_one_is_a_dot():
    chart = line_chart("x", {"a": [(0, 1.0), (5, float("nan")), (10, 3.0)], "b": [(10, 2.0)]}, WIDTH, HEIGHT)
    middle = curve_rows(chart, COLOURS[0], (LEFT + RIGHT) // 2)
    assert middle.mean() == pytest.approx((BOTTOM + TOP) / 2, abs=2)
    assert curve_rows(chart, COLOURS[1], RIGHT).mean() == pytest.approx((BOTTOM + TOP) / 2, abs=2)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e12, 1e-12])
def test_a_constant_of_any_size_is_a_level_line(value):
    chart = line_chart("x", {"a": [(0, value), (10, value)]}, WIDTH, HEIGHT)
    columns = [curve_rows(chart, COLOURS[0], x).tolist() for x in range(LEFT + 5, RIGHT - 5, 50)]
    assert columns[0]
    assert all(rows == columns[0] for rows in columns)


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, float("nan"))]}, {"a": [(3, float("inf"))]}])
def test_a_chart_without_points_is_empty_paper(series):
    chart = pixels(line_chart("", series, WIDTH, HEIGHT))
    assert chart.shape == (HEIGHT, WIDTH, 3)
    assert (chart == PAPER).all()


def test_a_saved_picture_is_a_png_whatever_its_name_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new folder" / "grid.picture"
    save_picture(to_image(flat(7)), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert (pixels(image) == 7).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_picture(to_image(flat(7)), tmp_path / "file" / "grid.png")
