"""What diffusers checks of every net: saved and loaded in all ways, deterministic, trained, cast, offloaded, compiled."""

import copy
import json

import nets
import pytest
import tiny
import torch
from diffusers.training_utils import EMAModel

from facesnap_diffusers import FFRNet, IdentityAttention, load_landmark_predictor


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


PARTS = ("mixer", "identity_attention", "ffrnet", "ffrnet of low rank", "landmark_predictor")


class Part:
    """A net, with a call that goes through all of it. `run` gives the results as a list of tensors."""

    def __init__(self, name, unet):
        torch.manual_seed(0)
        self.name, self.unet = name, copy.deepcopy(unet)
        if name == "mixer":
            self.net = nets.mixer()
        elif name == "identity_attention":
            self.net = IdentityAttention.from_unet(self.unet).eval()
        elif name == "landmark_predictor":
            self.net = copy.deepcopy(load_landmark_predictor())
        else:
            self.net = FFRNet.from_unet(self.unet, **({} if name == "ffrnet" else {"rank": 2})).eval()
        self.cls = type(self.net)
        for name_, parameter in self.net.named_parameters():
            if name_.endswith("up.weight") or "controlnet_" in name_ or "down" in name_:
                parameter.data.add_(0.05 * torch.randn_like(parameter))

    def load(self, folder, **options):
        net = self.cls.from_pretrained(folder, **options)
        if self.name == "ffrnet of low rank":
            net.bind(self.unet)
        return net

    def run(self, net=None, dtype=torch.float32, **options):
        net = self.net if net is None else net
        sample, _, tokens = (x.to(dtype) for x in nets.random_inputs(self.unet))
        generator = torch.Generator().manual_seed(2)
        if self.name == "mixer":
            embeds, states = torch.randn(2, 10, generator=generator), torch.randn(2, 7, 12, generator=generator)
            return [net(embeds.to(dtype), states.to(dtype), torch.tensor([False, True]), **options)]
        if self.name == "identity_attention":
            unet = self.unet.to(dtype)
            kwargs = net.context(unet, nets.NUM_TOKENS).as_kwargs()
            return [unet(sample, torch.tensor(500), tokens.repeat(1, 3, 1), cross_attention_kwargs=kwargs).sample]
        if self.name == "landmark_predictor":
            seen = tiny.face_points()[None] + torch.randn(2, 68, 2, generator=generator)
            return [net(seen, seen.flip(0))]
        drawn = torch.rand(2, 3, 128, 128, generator=generator).to(dtype)
        down, middle = net(sample, torch.tensor(500), tokens, drawn, return_dict=False, **options)
        return [*down, middle]


@pytest.fixture(params=PARTS)
def part(request, unet):
    return Part(request.param, unet)


def assert_close(results, expected, atol=1e-5):
    assert len(results) == len(expected)
    for result, other in zip(results, expected):
        torch.testing.assert_close(result, other, atol=atol, rtol=1e-4)


@torch.no_grad()
def test_saved_in_every_form(part, tmp_path):
    expected = part.run()
    assert_close(part.run(), expected, atol=0)
    part.net.save_pretrained(tmp_path / "variant", variant="fp16")
    assert_close(part.run(part.load(tmp_path / "variant", variant="fp16")), expected)
    with pytest.raises(OSError, match="no file named"):
        part.load(tmp_path / "variant")
    size = sum(parameter.numel() * 4 for parameter in part.net.state_dict().values())
    part.net.save_pretrained(tmp_path / "shards", max_shard_size=max(size // 3, 1))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    part.net.save_pretrained(tmp_path / "both", variant="fp16", max_shard_size=max(size // 3, 1))
    assert len(list((tmp_path / "both").glob("*.fp16-0000*.safetensors"))) > 1
    assert_close(part.run(part.load(tmp_path / "both", variant="fp16")), expected)
    for low_memory in (True, False):
        assert_close(part.run(part.load(tmp_path / "shards", low_cpu_mem_usage=low_memory)), expected)
    assert part.cls.load_config(tmp_path / "shards") == part.cls.load_config(tmp_path / "variant")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saved_in_half_precision(part, dtype, tmp_path):
    part.net.to(dtype).save_pretrained(tmp_path)
    for low_memory in (True, False):
        loaded = part.cls.from_pretrained(tmp_path, dtype=dtype, low_cpu_mem_usage=low_memory)
        assert loaded.dtype == part.net.dtype
    assert part.net.dtype == (torch.float32 if part.name == "landmark_predictor" else dtype)


def test_attributes(part):
    part.net.register_to_config(made_up=5)
    assert part.net.config.made_up == 5
    with pytest.raises(AttributeError, match=f"'{part.cls.__name__}' object has no attribute 'does_not_exist'"):
        part.net.does_not_exist  # noqa: B018


def test_every_parameter_is_trained(part):
    part.net.train().requires_grad_(True)
    if part.name == "ffrnet of low rank":
        part.unet.requires_grad_(False)
    sum((result**2).mean() for result in part.run()).backward()
    without = [name for name, parameter in part.net.named_parameters() if parameter.grad is None]
    if part.name == "landmark_predictor":  # the stages for landmarks with depth
        without = [name for name in without if "3d" not in name]
    assert not without
    average = EMAModel(part.net.parameters())
    before = [parameter.detach().clone() for parameter in part.net.parameters()]
    with torch.no_grad():
        for parameter in part.net.parameters():
            parameter.add_(1.0)
    average.step(part.net.parameters())
    average.copy_to(part.net.parameters())
    for parameter, old in zip(part.net.parameters(), before):
        assert (parameter - old).min() > 0 and (parameter - old).max() < 1.0 + 1e-4


def test_gradient_checkpointing(part):
    if not part.net._supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            part.net.enable_gradient_checkpointing()
        return
    gradients = []
    for on in (False, True):
        part.net.train().zero_grad()
        if on:
            part.net.enable_gradient_checkpointing()
            assert part.net.is_gradient_checkpointing
        sum((result**2).mean() for result in part.run()).backward()
        gradients.append([parameter.grad.clone() for parameter in part.net.parameters() if parameter.grad is not None])
    assert_close(*gradients)
    part.net.disable_gradient_checkpointing()
    assert not part.net.is_gradient_checkpointing


@torch.no_grad()
def test_stored_in_fewer_bits(part):
    expected = part.run()
    part.net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    results = part.run()
    for result, other in zip(results, expected):
        assert result.isfinite().all() and (result - other).abs().mean() < 0.2 * other.abs().mean() + 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_offloaded_in_groups_and_stored_in_fewer_bits(part, kind):
    part.net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    expected = part.run()
    part.net.enable_group_offload(torch.device("cpu"), offload_type=kind, num_blocks_per_group=1)
    assert_close(part.run(), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_offloaded_in_groups(part, kind, tmp_path):
    expected = part.run()
    options = {"offload_type": kind, "num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path)}
    part.net.enable_group_offload(torch.device("cpu"), **options)
    for _ in range(2):
        assert_close(part.run(), expected)


@torch.no_grad()
def test_results_as_objects_and_tuples(unet):
    part = Part("ffrnet", unet)
    sample, _, tokens = nets.random_inputs(unet)
    inputs = (sample, torch.tensor(500), tokens, torch.rand(2, 3, 128, 128))
    result = part.net(*inputs)
    down, middle = part.net(*inputs, return_dict=False)
    assert_close([*result.down_block_res_samples, result.mid_block_res_sample], [*down, middle], atol=0)
