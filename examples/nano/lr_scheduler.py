"""The learning rate of the training runs here: it rises, stays, and falls linearly to a hundredth."""

from __future__ import annotations


def learning_rate(peak: float, step: int, steps: int, warmup: int = 100, fall: float = 0.5) -> float:
    """Of a step: it rises over `warmup` steps and falls over the share `fall` of the run."""
    return peak * min(1, (step + 1) / warmup, max(0.01, (1 - step / steps) / fall))
