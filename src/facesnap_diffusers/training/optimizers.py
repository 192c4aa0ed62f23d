"""Optimizers by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import MissingDependencyError
from .training_config import OptimizerConfig


def check_optimizer(config: OptimizerConfig) -> None:
    """Raises [`MissingDependencyError`] where the optimizer's library is not installed."""
    if config.name == "adamw_8bit":
        _adamw_8bit()


def create_optimizer(config: OptimizerConfig, parts: nn.ModuleDict) -> torch.optim.Optimizer:
    """The optimizer of the trained parts, a parameter group and learning rate for each."""
    rates: Any = config.learning_rate
    groups = [
        {"params": list(part.parameters()), "lr": rates[name] if isinstance(rates, dict) else rates}
        for name, part in parts.items()
    ]
    if config.name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            groups, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=config.weight_decay
        )
    options: dict[str, Any] = {"betas": config.betas, "eps": config.epsilon, "weight_decay": config.weight_decay}
    if config.name == "adamw_8bit":
        return _adamw_8bit()(groups, **options)
    return torch.optim.AdamW(groups, fused=config.name == "adamw_fused", **options)


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingDependencyError(
            "optimizer.name is adamw_8bit, which needs bitsandbytes: pip install bitsandbytes"
        ) from error
    return AdamW8bit
