"""The true picture: the scores of a perfect method, and so how far the metrics can be trusted."""

from pathlib import Path
from typing import ClassVar

from ...errors import InputError
from ...settings import strict_dataclass
from ..cases import Case
from .pictures import Pictures


@strict_dataclass()
class GroundTruth(Pictures):
    """The true picture of each case, where the benchmark has one."""

    kind: ClassVar[str] = "ground_truth"

    def find(self, case: Case) -> Path:
        if case.ground_truth is None:
            raise InputError(f"case {case.id} has no true picture; remove the method ground_truth")
        return case.ground_truth
