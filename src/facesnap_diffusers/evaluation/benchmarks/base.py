"""What a benchmark is: cases, and the table of their scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...errors import InputError
from ..cases import Case


@dataclass(frozen=True)
class Column:
    """
    A column of the Markdown table.

    Attributes:
        title (`str`): Its head.
        metric (`str`): See `docs/evaluation.md` for all of them.
        statistic (`str`): `"mean"`, `"median"`, or `"percent"` for the mean of a share.
        better (`str`): `"higher"`, `"lower"`, or empty where neither is.
        group (`str`, *optional*): Only the cases of this group; all by default.
        digits (`int`): Decimals.
    """

    title: str
    metric: str
    statistic: Literal["mean", "median", "percent"] = "mean"
    better: Literal["higher", "lower", ""] = ""
    group: str | None = None
    digits: int = 3


@dataclass(frozen=True)
class Benchmark:
    """
    Which images to make, and which scores to print.

    Attributes:
        name (`str`): Its name on the command line.
        cases (`tuple[Case, ...]`): The images to be made.
        columns (`tuple[Column, ...]`): What the table shows. Columns without any value are left out.
        background_colors (`dict[str, tuple[int, int, int]]`): Colours that prompts name, RGB in 0 to 255.
        needs_clip (`bool`): Whether its table has CLIP metrics.
        notes (`tuple[str, ...]`): Stand below the table.
    """

    name: str
    cases: tuple[Case, ...]
    columns: tuple[Column, ...]
    background_colors: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    needs_clip: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise InputError(f"benchmark {self.name} has no cases; check the data folder")
        ids = [case.id for case in self.cases]
        if len(set(ids)) != len(ids):
            repeated = next(id for id in ids if ids.count(id) > 1)
            raise InputError(f"benchmark {self.name} has two cases {repeated!r}; give each an id of its own")

    def limit(self, count: int) -> Benchmark:
        """The same with at most `count` cases, spread evenly over all of them."""
        if count < 1:
            raise InputError(f"limit must be at least 1, got {count}")
        if count >= len(self.cases):
            return self
        kept = tuple(self.cases[i * len(self.cases) // count] for i in range(count))
        return replace(self, cases=kept)


FACE_COLUMNS = (
    Column("no face %", "no_face", "percent", "lower", digits=1),
    Column("similarity", "face_similarity", better="higher"),
    Column("distance (median)", "face_distance", "median", "lower"),
    Column("top-1 %", "top1", "percent", "higher", digits=1),
    Column("top-5 %", "top5", "percent", "higher", digits=1),
)
