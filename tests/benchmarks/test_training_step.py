"""The arithmetic of a training step holds together."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.slow
def test_counts(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[2] / "benchmarks")])
    import training_step
    from random_models import unet_config

    found = training_step.count(side=256, width=0.25)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = UNet2DConditionModel(**unet_config("sd1", 0.25))
        unet(torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, 77, 768))
    # a backward pass is twice a forward pass with the gradients of the weights, and about one without
    forward, unit, to_input = counter.get_total_flops(), found[training_step.UNIT], found[training_step.TO_INPUT]
    assert unit == pytest.approx(3 * forward, rel=0.05)
    assert 1.5 * forward < to_input < 2.5 * forward
    encoders = found["image encoder"] + found["text encoder"] + found["mixer"]
    assert found["step, data.crops"] == found["UNet with the adapter"] + encoders
    assert found["step"] == found["step, data.crops"] + found["VAE's encoder"]
    small = found["UNet with the adapter, small FFRNet"]
    assert to_input < small < found["UNet with the adapter"]
