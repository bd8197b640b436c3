"""The key image as a picture: gray film, outlines or a map in color, and below it a panel that a person can read.

Pillow only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from workers.report import heat, outline

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST, LARGEST, NARROWEST = 768, 1024, 640
"""The longer side of the image part, in pixels, at least and at most; and the least width of the picture."""
_OVERSAMPLING = 2  # Pillow draws without anti-aliasing: twice as large, then down
_PANEL, _TEXT, _FAINT, _AMBER = "#0d1117", "#f0f3f6", "#8d96a0", "#ffb347"


@dataclass(frozen=True)
class Mask:
    """What to outline on the image: (row, column) booleans and a `#rrggbb` color."""

    pixels: NDArray[np.bool_]
    color: str


@dataclass(frozen=True)
class Line:
    """One line of the panel: a swatch, filled when `solid`, a name and its values."""

    color: str
    label: str
    values: str
    solid: bool = True


@dataclass(frozen=True)
class Heat:
    """A map to lay over the image: (row, column) values in 0..1, and what the key to its colors says."""

    values: NDArray[np.float32]
    key: str


def window(pixels: NDArray[np.float32]) -> tuple[float, float]:
    """Return the gray values shown as black and white: almost the whole range, without the outliers."""
    low, high = np.percentile(pixels[np.isfinite(pixels)], (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def render(
    *,
    pixels: NDArray[np.float32],
    pixel_aspect: float,
    window: tuple[float, float],
    masks: Sequence[Mask],
    notice: str,
    caption: str,
    lines: Sequence[Line],
    heat_map: Heat | None = None,
) -> Pixels:
    """Return the picture as (row, column, 3) uint8.

    `pixels`: one slice, (row, column); `pixel_aspect`: row spacing over column spacing, so that circles stay round.
    """
    film = _film(pixels, pixel_aspect, window)
    if heat_map is not None:
        film = heat.over(film, heat_map.values)
    film = _outlined(film, masks, pixels.shape)
    panel = _panel(max(film.width, NARROWEST), notice, caption, lines, heat_map.key if heat_map else "")
    picture = Image.new("RGB", (panel.width, film.height + panel.height), "black")
    picture.paste(film, ((panel.width - film.width) // 2, 0))
    picture.paste(panel, (0, film.height))
    return np.asarray(picture, np.uint8)


def _film(pixels: NDArray[np.float32], pixel_aspect: float, window: tuple[float, float]) -> Image.Image:
    """Scale the slice to a legible size and its gray values to 0..255."""
    low, high = window
    gray = np.nan_to_num(np.clip((pixels - low) / (high - low), 0, 1)) * 255
    height, width = pixels.shape[0] * pixel_aspect, float(pixels.shape[1])
    longest = max(height, width)
    scale = min(max(longest, SMALLEST), LARGEST) / longest
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    how = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(gray.round().astype(np.uint8)).resize(size, how).convert("RGB")


def _outlined(film: Image.Image, masks: Sequence[Mask], shape: tuple[int, ...]) -> Image.Image:
    """Draw each mask's outline in its color, with a thin dark rim so that it shows on bright and dark ground."""
    large = film.resize((film.width * _OVERSAMPLING, film.height * _OVERSAMPLING), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(large)
    scale = np.array([large.width / shape[1], large.height / shape[0]])
    for mask in masks:
        for points in outline.outlines(mask.pixels, tolerance=0.4):
            path = [(float(x), float(y)) for x, y in points * scale]
            draw.line(path, fill="black", width=5 * _OVERSAMPLING, joint="curve")
            draw.line(path, fill=mask.color, width=3 * _OVERSAMPLING, joint="curve")
    return large.resize(film.size, Image.Resampling.LANCZOS)


def _panel(width: int, notice: str, caption: str, lines: Sequence[Line], key: str) -> Image.Image:
    """The text below the image: notice and model first, one line per finding or segment, the key to the colors."""
    size = max(width // 36, 18)
    pad, step = size, round(size * 1.6)
    rows = 2 + len(lines) + bool(key)
    panel = Image.new("RGB", (width, 2 * pad + step * rows + pad // 2), _PANEL)
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, 0, width, max(size // 8, 2)), fill=_AMBER)
    draw.text((pad, pad), notice, font=_font(round(size * 1.15)), fill=_AMBER)
    draw.text(
        (pad, pad + step),
        _fitted(caption, _font(round(size * 0.8)), width - 2 * pad),
        font=_font(round(size * 0.8)),
        fill=_FAINT,
    )
    for number, line in enumerate(lines):
        _line(draw, line, (pad, pad + pad // 2 + step * (2 + number)), size, width)
    if key:
        _key(panel, key, (pad, pad + pad // 2 + step * (rows - 1)), size)
    return panel


def _key(panel: Image.Image, text: str, at: tuple[int, int], size: int) -> None:
    """What the colors mean: words on the left, from weak to strong on the right."""
    (x, y), font, draw = at, _font(round(size * 0.8)), ImageDraw.Draw(panel)
    end, length = panel.width - x, panel.width // 4
    strong, weak = (draw.textlength(f" {word} ", font=font) for word in ("strong", "weak"))
    start = round(end - strong - length)
    panel.paste(heat.bar(length, round(size * 0.8)), (start, y + size // 5))
    draw.text((start - weak, y), " weak ", font=font, fill=_FAINT)
    draw.text((start + length, y), " strong ", font=font, fill=_FAINT)
    draw.text((x, y), _fitted(text, font, start - weak - x), font=font, fill=_FAINT)


def _line(draw: ImageDraw.ImageDraw, line: Line, at: tuple[int, int], size: int, width: int) -> None:
    (x, y), side, font = at, round(size * 0.8), _font(size)
    box = (x, y + size // 5, x + side, y + size // 5 + side)
    draw.rectangle(box, fill=line.color if line.solid else None, outline=line.color, width=max(size // 9, 2))
    value_width = draw.textlength(line.values, font=font)
    start, end = x + round(1.6 * size), width - x
    label = _fitted(line.label, font, end - start - value_width - size)
    draw.text((start, y), label, font=font, fill=_TEXT if line.solid else _FAINT)
    draw.text((end - value_width, y), line.values, font=font, fill=_TEXT if line.solid else _FAINT)


def _fitted(text: str, font: Font, width: float) -> str:
    """Shorten `text` with an ellipsis until it fits."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1].rstrip() + "…"
    return text


def _font(size: int) -> Font:
    """The font that comes with Pillow: nothing to install, nothing to ship."""
    return ImageFont.load_default(size)
