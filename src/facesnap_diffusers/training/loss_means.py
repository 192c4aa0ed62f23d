"""Means of what a run logs, over the steps since the last line."""

from __future__ import annotations

from collections import Counter

import torch
from accelerate import Accelerator


class LossMeans:
    """
    Sums of values by name; each is divided by how often it was added: not every loss is computed at every step. Values that
    are not finite do not count, those of skipped steps.

    Attributes:
        steps (`int`): How often the most frequent value was added: forward passes.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._added: Counter[str] = Counter()

    @property
    def steps(self) -> int:
        return max(self._added.values(), default=0)

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            finite = torch.isfinite(value)
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(finite, value, 0.0)
            self._counts[name] = self._counts.get(name, 0.0) + finite.float()
            self._added[name] += 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes; NaN where nothing finite was added."""
        means = {}
        for name, total in self._sums.items():
            both = torch.stack([total, self._counts[name]]).to(accelerator.device)
            total, count = accelerator.reduce(both, "sum").tolist()
            means[name] = total / count if count else float("nan")
        return means
