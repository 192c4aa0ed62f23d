"""Training state on disk: everything needed to continue as if the run had not stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from facesnap_diffusers.files import atomic_file


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int):
        decay = min(self.decay, (step + 1) / (step + 15))
        torch._foreach_lerp_(list(self.parameters.values()), list(self.module.parameters()), 1 - decay)

    @torch.no_grad()
    def swap(self):
        """Exchanges the module's parameters with their average; call again to exchange them back."""
        for name, parameter in self.module.named_parameters():
            current = parameter.detach().clone()
            parameter.copy_(self.parameters[name])
            self.parameters[name].copy_(current)

    def __enter__(self):
        self.swap()

    def __exit__(self, *_):
        self.swap()


def save_checkpoint(path: Path, step: int, module: nn.Module, average: Average, optimizer, rng: np.random.Generator):
    state = {
        "step": step,
        "module": module.state_dict(),
        "average": average.parameters,
        "optimizer": optimizer.state_dict(),
        "rng": rng.bit_generator.state,
        "torch_rng": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, module: nn.Module, average: Average, optimizer, rng: np.random.Generator) -> int:
    """Restores everything in place; returns the number of finished steps (0 where there is no checkpoint)."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=False)
    module.load_state_dict(state["module"])
    for name, value in state["average"].items():
        average.parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    rng.bit_generator.state = state["rng"]
    torch.set_rng_state(state["torch_rng"])
    return state["step"]
