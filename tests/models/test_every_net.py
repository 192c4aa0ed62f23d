"""What holds for all nets: they are compiled without graph breaks, saved and loaded."""

import json

import nets
import pytest
import torch

from facesnap_diffusers import FFRNet, IdentityAttention


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", ["mixer", "ffrnet"])
def test_no_graph_breaks(unet, part):
    sample, _, tokens = nets.random_inputs(unet)
    if part == "mixer":
        module, inputs = nets.mixer(), (torch.randn(2, 10), torch.randn(2, 7, 12), torch.tensor([False, True]))
    else:
        module, inputs = FFRNet.from_unet(unet).eval(), (sample, torch.tensor(500), tokens, torch.rand(2, 3, 128, 128))
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="eager")(*inputs)
        expected = module(*inputs)
    for ours, theirs in zip(*((out if part == "mixer" else [out[1]]) for out in (compiled, expected))):
        torch.testing.assert_close(ours, theirs)


def test_parts_survive_saving(tmp_path, unet):
    torch.manual_seed(0)
    parts = [nets.mixer(), IdentityAttention.from_unet(unet), FFRNet.from_unet(unet)]
    for part in parts:
        part.save_pretrained(tmp_path / type(part).__name__)
        loaded = type(part).from_pretrained(tmp_path / type(part).__name__)
        assert sizes_of(loaded) == sizes_of(part)
        for name, parameter in part.state_dict().items():
            assert torch.equal(parameter, loaded.state_dict()[name]), name


def sizes_of(part):
    return {name: value for name, value in json.loads(part.to_json_string()).items() if not name.startswith("_")}
