"""Memory by arithmetic, against sizes that are known from elsewhere."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from facesnap_diffusers import InputError
from facesnap_diffusers.cli import app
from facesnap_diffusers.memory import Nets, count_modes, peak_bytes


#: Parameters of the public models: UNet, text encoders, autoencoder.
PUBLIC = {
    "sd1": (859_520_964, [123_060_480], 83_653_863),
    "sd2": (865_910_724, [340_387_840], 83_653_863),
    "sdxl": (2_567_463_684, [123_060_480, 694_659_840], 83_653_863),
}


def test_peak_of_a_net():
    """The largest layer's input, output and activation at once; neither weights nor what is given count."""
    net = nn.Sequential(nn.Linear(10, 1000), nn.GELU(), nn.Linear(1000, 10)).to("meta")
    given = torch.empty(7, 10, device="meta")
    assert peak_bytes(lambda: net(given)) == 7 * 2000 * 4
    attention = torch.empty(1, 2, 500, 8, device="meta")
    assert (
        peak_bytes(lambda: nn.functional.scaled_dot_product_attention(attention, attention, attention)) == 500 * 16 * 4
    )


@pytest.mark.parametrize("base", PUBLIC)
def test_nets_have_the_sizes_of_the_public_ones(base):
    nets = Nets(base)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (nets.unet, *nets.text_encoders, nets.vae)]
    assert sizes == [PUBLIC[base][0], *PUBLIC[base][1], PUBLIC[base][2]]


@pytest.mark.slow
def test_modes_of_stable_diffusion_1():
    full, small = ({mode.name: mode for mode in count_modes("sd1", ffrnet_rank=rank)} for rank in (None, 128))
    plain = full["float16"]
    assert plain.weights == pytest.approx(full["float32"].weights / 2, rel=0.01)  # but for the landmark predictor
    assert all(mode.peak <= plain.peak for name, mode in full.items() if name != "float32")
    assert full["offload by group or sequence"].peak < full["offload by model"].peak < plain.peak
    assert plain.weights - small["float16"].weights == pytest.approx(2 * (361_279_120 - 67_845_776), rel=0.01)
    # the weights of linear and convolution layers take half in float8, and they are nearly all there is
    saved = plain.weights - full["UNet and FFRNet in float8"].weights
    assert saved == pytest.approx(859_520_964 + 361_279_120, rel=0.02)


@pytest.mark.slow
def test_command():
    result = CliRunner().invoke(app, ["info", "--memory", "--base", "sd1", "--side", "256"], env={"COLUMNS": "120"})
    assert result.exit_code == 0 and "offload by model" in result.output and "full FFRNet" in result.output
    result = CliRunner().invoke(app, ["info", "--memory", "--base", "sd1", "--side", "100"])
    assert isinstance(result.exception, InputError) and "multiple of 64" in str(result.exception)
    result = CliRunner().invoke(app, ["info", "--base", "sd1"])
    assert isinstance(result.exception, InputError) and "are for --memory" in str(result.exception)


def test_a_base_in_a_folder(tmp_path):
    import tiny

    tiny.sd_pipeline().save_pretrained(tmp_path)
    nets = Nets(str(tmp_path))
    assert nets.unet.config.cross_attention_dim == 32 and nets.unet.device.type == "meta"
    with pytest.raises(InputError, match="base must be one of sd1, sd2, sdxl, or a folder"):
        Nets(str(tmp_path / "nowhere"))
