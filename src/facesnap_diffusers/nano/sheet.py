"""One contact sheet: a block of pictures for each person, in labelled groups of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps


GAP = 4
GROUP_GAP = 20
ROW_GAP = 20
MARGIN = 16
HEADING, LABEL = 24, 18  # font sizes: readable where the sheet is as wide as a page


@dataclass(frozen=True)
class Group:
    """
    Columns that belong together.

    Attributes:
        heading (`str`): Stands over all of them.
        labels (`tuple[str, ...]`): One over each column, of one line or several.
    """

    heading: str
    labels: tuple[str, ...]

    def width(self, tile: int) -> int:
        return len(self.labels) * (tile + GAP) - GAP


#: Of a person, in a column: a picture, and below it another one or a text.
Column = tuple[PIL.Image.Image, PIL.Image.Image | str]


def draw_sheet(
    groups: Sequence[Group], rows: Sequence[Sequence[Sequence[Column]]], tile: int = 128
) -> PIL.Image.Image:
    """
    Draws the sheet.

    Args:
        groups (`Sequence[Group]`): The columns, from left to right.
        rows (`Sequence`): For each person, for each group, its columns.
        tile (`int`): Side of a picture on it, in pixels.

    Returns:
        `PIL.Image.Image`: RGB, on white.
    """
    lines = 1 + max(label.count("\n") for group in groups for label in group.labels)
    header = MARGIN + HEADING + 14 + lines * (LABEL + 4)
    block = 2 * tile + GAP
    width = 2 * MARGIN + sum(group.width(tile) for group in groups) + GROUP_GAP * (len(groups) - 1)
    height = header + len(rows) * (block + ROW_GAP) - ROW_GAP + MARGIN
    sheet = PIL.Image.new("RGB", (width, height), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    left = MARGIN
    for number, group in enumerate(groups):
        pen.text((left, MARGIN), group.heading, "black", PIL.ImageFont.load_default(HEADING))
        line = MARGIN + HEADING + 6
        pen.line((left, line, left + group.width(tile) - 1, line), (160, 160, 160))
        for column, label in enumerate(group.labels):
            x = left + column * (tile + GAP)
            _write(pen, label, (x + tile / 2, header - 5), "md")
            for row, person in enumerate(rows):
                _draw_column(sheet, pen, person[number][column], x, header + row * (block + ROW_GAP), tile)
        left += group.width(tile) + GROUP_GAP
    return sheet


def _draw_column(
    sheet: PIL.Image.Image, pen: PIL.ImageDraw.ImageDraw, column: Column, x: int, y: int, tile: int
) -> None:
    for content, top in zip(column, (y, y + tile + GAP), strict=True):
        if isinstance(content, str):
            _write(pen, content, (x + tile / 2, top), "ma")
        else:
            sheet.paste(PIL.ImageOps.pad(content, (tile, tile), PIL.Image.Resampling.LANCZOS, color="white"), (x, top))


def _write(pen: PIL.ImageDraw.ImageDraw, text: str, at: tuple[float, float], anchor: str) -> None:
    pen.multiline_text(at, text, (60, 60, 60), PIL.ImageFont.load_default(LABEL), anchor, spacing=4, align="center")
