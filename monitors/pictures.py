"""Pictures for the dashboard: heatmaps as PNG, the same bytes for the same numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from .dashboard import Picture

WIDTH, SQUARE = 512, 320  # width of the plot area in pixels; side of a plot area that is about square
TALLEST, USUAL, CELL = 256, 128, 12  # heights in pixels: of a panel, and at most of one row
MARGIN, LINE, BAR = 8, 15, 12  # pixels: outer margin, height of a text line, width of the colour bar
MOST_LINES = 48  # with more marks, only ticks at the upper edge are drawn, so that the picture stays visible

# Lightness increases evenly from black over blue-violet, red and orange to pale yellow, with interpolation between.
COLOURS = np.array(
    [
        (0, 0, 0),
        (36, 14, 86),
        (98, 20, 112),
        (160, 38, 98),
        (212, 70, 66),
        (244, 122, 32),
        (250, 188, 58),
        (254, 250, 190),
    ],
    np.float64,
)
UNKNOWN = (128, 128, 128)  # colour of NaN
INK, PAPER, MARK = (40, 40, 40), (255, 255, 255), (90, 220, 255)


def heatmap(
    array: ArrayLike,
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    low: float | None = None,
    high: float | None = None,
    marks: Sequence[float] = (),
    x_ticks: Mapping[float, str] | None = None,
) -> Picture:
    """A matrix as colours, dark for low values; the first row is on top.

    Args:
        array: [rows, columns]; values that are not finite are grey.
        title: Text above the heatmap.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        low: Value of the darkest colour, which lower values have too; the lowest value if None.
        high: Value of the brightest colour, which higher values have too; the highest value if None.
        marks: Thin vertical lines, in columns from the left edge (0 … columns).
        x_ticks: Labels of the horizontal axis, by position in columns; column numbers if None.

    Raises:
        ValueError: The array is not a matrix, or is empty.
    """
    return stack({y_label: array}, title=title, x_label=x_label, low=low, high=high, marks=marks, x_ticks=x_ticks)


def stack(
    panels: Mapping[str, ArrayLike],
    *,
    title: str,
    x_label: str = "",
    low: float | None = None,
    high: float | None = None,
    marks: Sequence[float] = (),
    x_ticks: Mapping[float, str] | None = None,
) -> Picture:
    """Heatmaps with the same number of columns, one below the other, with labels, common colours and one axis.

    The arguments are those of `heatmap`.

    Raises:
        ValueError: There is no panel, or a panel is not a matrix, is empty, or has another number of columns.
    """
    arrays = {label: np.asarray(panel, np.float64) for label, panel in panels.items()}
    shapes = [array.shape for array in arrays.values()]
    if not shapes or any(len(shape) != 2 or 0 in shape or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"{title}: panels must be matrices with equal numbers of columns, not {shapes}")
    columns = shapes[0][1]
    low, high = _range(arrays.values(), low, high)
    font = ImageFont.load_default(11)
    wide, heights = _sizes([rows for rows, _ in shapes], columns)
    labels = [label for label in arrays if label]
    left = MARGIN + (max(int(font.getlength(label)) for label in labels) + MARGIN if labels else 0)
    scale = [_number(value) for value in (high, (low + high) / 2, low)]
    right = 2 * MARGIN + BAR + 4 + max(int(font.getlength(text)) for text in scale)
    top = MARGIN + 2 * LINE
    field = sum(heights) + MARGIN * (len(heights) - 1)
    width = max(left + wide + right, 2 * MARGIN + int(font.getlength(title)))
    image = Image.new("RGB", (width, top + field + 2 * LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, INK, font)

    places = sorted({round(mark / columns * wide) for mark in marks if 0 <= mark <= columns})
    y = top
    for (label, array), height in zip(arrays.items(), heights, strict=True):
        image.paste(Image.fromarray(_pixels(array, low, high, height, wide)), (left, y))
        draw.text((left - MARGIN, y + height // 2), label, INK, font, anchor="rm")
        for x in places if len(places) <= MOST_LINES else ():
            draw.point([(min(left + x, left + wide - 1), y + i) for i in range(0, height, 3)], MARK)
        y += height + MARGIN
    for x in places:
        draw.line([(left + x, top - 5), (left + x, top - 2)], MARK, 2)

    y = top + field
    ticks = {i: str(round(i)) for i in _round_steps(columns)} if x_ticks is None else dict(x_ticks)
    for place, text in ticks.items():
        x = left + round(place / columns * wide)
        draw.line([(x, y), (x, y + 3)], INK)
        anchor = "lt" if place <= 0 else "rt" if place >= columns else "mt"
        draw.text((x, y + 5), text, INK, font, anchor=anchor)
    draw.text((left + wide // 2, y + 5 + LINE), x_label, INK, font, anchor="mt")

    x = left + wide + MARGIN
    bar = np.linspace(1.0, 0.0, field)[:, None].repeat(BAR, 1)
    image.paste(Image.fromarray(colours(bar)), (x, top))
    for text, place, anchor in zip(scale, (0, field // 2, field - 1), ("lt", "lm", "lb"), strict=True):
        draw.text((x + BAR + 4, top + place), text, INK, font, anchor=anchor)
    return encoded(image)


def encoded(image: Image.Image) -> Picture:
    """Encode an image for the dashboard."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False, compress_level=9)
    return Picture(file.getvalue(), image.width, image.height)


def colours(share: NDArray[Any]) -> NDArray[np.uint8]:
    """Shares between 0 (darkest) and 1 (brightest) as colours [..., 3]; values outside are clipped."""
    place = np.clip(np.nan_to_num(share), 0, 1) * (len(COLOURS) - 1)
    channels = [np.interp(place, np.arange(len(COLOURS)), COLOURS[:, channel]) for channel in range(3)]
    rgb = np.stack(channels, -1).round().astype(np.uint8)
    rgb[~np.isfinite(share)] = UNKNOWN
    return rgb


def _pixels(array: NDArray[Any], low: float, high: float, height: int, width: int) -> NDArray[np.uint8]:
    finite = np.where(np.isposinf(array), high, np.where(np.isneginf(array), low, array))
    rgb = colours((finite - low) / (high - low))
    rows = np.arange(height) * len(array) // height
    columns = np.arange(width) * array.shape[1] // width
    return rgb[rows][:, columns]


def _sizes(rows: Sequence[int], columns: int) -> tuple[int, list[int]]:
    """Width and heights of the panels in pixels; rows and columns have equal sizes, if they fit."""
    if len(rows) == 1 and columns <= 2 * rows[0] <= 4 * columns and max(rows[0], columns) <= SQUARE:
        cell = SQUARE // max(rows[0], columns)
        return columns * cell, [rows[0] * cell]
    wide = columns * max(1, WIDTH // columns) if columns <= WIDTH else min(columns, 2 * WIDTH)
    return wide, [n * max(1, min(CELL, USUAL // n)) if n <= TALLEST else TALLEST for n in rows]


def _range(arrays: Any, low: float | None, high: float | None) -> tuple[float, float]:
    """The values of the darkest and of the brightest colour; they always differ."""
    values = np.concatenate([array[np.isfinite(array)] for array in arrays])
    low = float(values.min() if values.size else 0.0) if low is None else low
    high = float(values.max() if values.size else 1.0) if high is None else high
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def _round_steps(columns: int) -> list[float]:
    """About five round numbers from 0 to the number of columns."""
    step = 10.0 ** math.floor(math.log10(max(columns, 1) / 4)) if columns >= 4 else 1.0
    step = max(1.0, next(step * n for n in (1, 2, 5, 10) if columns / (step * n) <= 6))
    return [i * step for i in range(int(columns / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}"
