"""A tiny UNet."""

import pytest
import tiny
import torch


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return tiny.sd_unet().eval()
