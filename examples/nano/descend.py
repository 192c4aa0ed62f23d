"""A step of the training runs here."""

from __future__ import annotations

import torch
from checkpoints import Average
from torch import nn


def descend(
    loss: torch.Tensor,
    module: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    rate: float,
    step: int,
    norm: float = 1.0,
):
    """One step down the gradient of a loss, scaled down to this norm, at this learning rate; the average follows."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), norm)
    optimizer.step()
    average.update(step)
