"""FFRNet of low rank against stock ControlNets with the summed weights, whatever is done to the UNet whose layers it shares."""

import copy
import pickle

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch import nn

from facesnap_diffusers import AdapterError, FFRNet, InputError
from facesnap_diffusers.base_models import empty_unet
from facesnap_diffusers.models.attention import IdentityAttention
from facesnap_diffusers.models.low_rank import SharedLayer, shared_layers
from facesnap_diffusers.models.mixer import FacialAttributeMixer


pytestmark = pytest.mark.slow


RANK = 3
NUM_TOKENS = 5


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny.sd_unet().eval().requires_grad_(False)


@pytest.fixture
def ffrnet(unet):
    return disturbed(FFRNet.from_unet(unet, rank=RANK))


def disturbed(model):
    """With every weight changed, so that zero convolutions and differences that start at zero take part."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def inputs(unet, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(2, 4, 16, 16, generator=generator)
    tokens = torch.randn(2, NUM_TOKENS, unet.config.cross_attention_dim, generator=generator)
    image = torch.rand(2, 3, 128, 128, generator=generator)
    arguments = {
        "sample": sample.to(device, dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": tokens.to(device, dtype),
        "controlnet_cond": image.to(device, dtype),
        "return_dict": False,
    }
    if unet.config.addition_embed_type == "text_time":
        time_ids = torch.randn(2, 6, generator=generator).to(device, dtype)
        arguments["added_cond_kwargs"] = {"text_embeds": torch.zeros_like(tokens[:, 0, :32]), "time_ids": time_ids}
    return arguments


@torch.no_grad()
def output(net, unet, dtype=torch.float32, **changes):
    """All residuals in one vector."""
    down, mid = net(**{**inputs(unet, dtype), **changes})
    return torch.cat([residual.flatten() for residual in [*down, mid]])


def stock_controlnet(ffrnet, unet_weights):
    """A `ControlNetModel` whose weights are summed here, by name and by hand."""
    own = {name: tensor.float() for name, tensor in ffrnet.state_dict().items()}
    stock = ControlNetModel.from_config(dict(ffrnet.config) | {"_class_name": "ControlNetModel"}).eval()
    weights = {}
    for name, tensor in stock.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if name in own:
            weights[name] = own[name]
        elif kind == "bias":
            weights[name] = unet_weights[name].float() + own[f"{layer}.up.bias"]
        else:
            up, down = own[f"{layer}.up.weight"], own[f"{layer}.down.weight"]
            weights[name] = unet_weights[name].float() + torch.einsum("or,r...->o...", up.flatten(1), down)
        assert weights[name].shape == tensor.shape
    stock.load_state_dict(weights)
    return stock


def assert_close(ours, expected, atol=1e-5):
    assert torch.isfinite(expected).all() and expected.abs().max() > 0.1
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


class TestForward:
    @pytest.mark.parametrize("make_unet", [tiny.sd_unet, tiny.xl_unet])
    def test_equals_a_stock_controlnet_with_the_summed_weights(self, make_unet):
        torch.manual_seed(0)
        unet = make_unet().eval()
        ffrnet = disturbed(FFRNet.from_unet(unet, rank=RANK))
        expected = output(stock_controlnet(ffrnet, unet.state_dict()), unet)
        assert_close(output(ffrnet, unet), expected)
        assert_close(output(ffrnet.to_full(), unet), expected)
        assert ffrnet.to_full().config.rank is None

    def test_starts_as_a_copy_of_the_encoder(self, unet):
        full, small = FFRNet.from_unet(unet).eval(), FFRNet.from_unet(unet, rank=RANK).eval()
        assert not output(small, unet).any()
        for net in (full, small):
            for convolution in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
                nn.init.ones_(convolution.weight)
        small.controlnet_cond_embedding.load_state_dict(full.controlnet_cond_embedding.state_dict())
        assert_close(output(small, unet), output(full, unet))

    def test_never_sees_the_pooled_text(self):
        unet = tiny.xl_unet()
        ffrnet = disturbed(FFRNet.from_unet(unet, rank=RANK))
        added = inputs(unet)["added_cond_kwargs"]
        other = {**added, "text_embeds": torch.randn(2, 32)}
        assert torch.equal(output(ffrnet, unet), output(ffrnet, unet, added_cond_kwargs=other))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype, unet, ffrnet):
        expected = output(ffrnet, unet)
        unet.to(dtype)
        half = output(ffrnet.to(dtype), unet, dtype)
        assert half.dtype == dtype
        assert (half.float() - expected).norm() < 0.03 * expected.norm()

    @pytest.mark.parametrize("autocast", [False, True])
    def test_trains_in_single_precision_on_a_half_precision_base(self, unet, ffrnet, autocast):
        expected = output(ffrnet, unet)
        unet.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mixed = output(ffrnet, unet)
        assert (mixed.float() - expected).norm() < 0.03 * expected.norm()

    def test_one_graph(self, unet, ffrnet):
        torch._dynamo.reset()
        compiled = torch.compile(ffrnet, fullgraph=True, backend="eager")
        assert_close(output(compiled, unet), output(ffrnet, unet))

    def test_a_compiled_unet(self, unet, ffrnet):
        again = FFRNet.from_config(ffrnet.config).eval()
        again.load_state_dict(ffrnet.state_dict())
        again.bind(torch.compile(unet, backend="eager"))
        assert torch.equal(output(again, unet), output(ffrnet, unet))


class TestOwnTensors:
    def test_only_its_own_are_in_the_state_dict_and_parameters(self, unet, ffrnet):
        shared = {id(parameter) for parameter in unet.parameters()}
        assert not shared & {id(parameter) for parameter in ffrnet.parameters()}
        layers = dict(shared_layers(ffrnet))
        assert len(layers) > 20
        for name, layer in layers.items():
            assert layer.base is unet.get_submodule(name)
            assert set(layer.state_dict()) <= {"down.weight", "up.weight", "up.bias"}
            kept = sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim > 1)
            assert kept < unet.get_submodule(name).weight.numel()
        assert not any(parameter.is_meta for parameter in ffrnet.parameters())

    def test_layers_too_small_to_gain_are_copies(self, unet):
        full = FFRNet.from_unet(unet, rank=10_000)
        assert not dict(shared_layers(full)) and full.is_bound
        expected = dict(FFRNet.from_unet(unet).state_dict())
        encoder = [name for name in expected if not name.startswith("controlnet")]
        assert set(full.state_dict()) == set(expected)
        assert all(torch.equal(full.state_dict()[name], expected[name]) for name in encoder)

    def test_saved_and_loaded(self, tmp_path, unet, ffrnet):
        expected = output(ffrnet, unet)
        ffrnet.save_pretrained(tmp_path)
        loaded, info = FFRNet.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()) and loaded.config.rank == RANK and not loaded.is_bound
        with pytest.raises(AdapterError, match=r"ffrnet\.bind\(unet\)") as error:
            output(loaded, unet)
        assert "\n" not in str(error.value)
        loaded.bind(unet)
        assert loaded.is_bound and torch.equal(output(loaded, unet), expected)
        half = FFRNet.from_pretrained(tmp_path, dtype=torch.float16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}

    def test_full_ones_need_no_binding(self, tmp_path, unet):
        full = FFRNet.from_unet(unet)
        full.bind(unet)
        full.save_pretrained(tmp_path)
        loaded = FFRNet.from_pretrained(tmp_path)
        assert full.is_bound and loaded.is_bound and loaded.config.rank is None and not full.has_fused_lora()

    def test_training_reaches_its_own_alone(self, unet, ffrnet):
        unet.requires_grad_(True)
        target = output(ffrnet, unet) + 0.1
        ffrnet.train()

        def loss():
            down, mid = ffrnet(**inputs(unet))
            return (torch.cat([residual.flatten() for residual in [*down, mid]]) - target).square().mean()

        plain = loss()
        plain.backward()
        assert all(parameter.grad is None for parameter in unet.parameters())
        grads = {name: parameter.grad.clone() for name, parameter in ffrnet.named_parameters()}
        assert all(grad.abs().max() > 0 for grad in grads.values())
        ffrnet.zero_grad()
        ffrnet.enable_gradient_checkpointing()
        loss().backward()
        for name, parameter in ffrnet.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name], atol=1e-6, rtol=1e-3)
        torch.optim.SGD(ffrnet.parameters(), 1e-3).step()
        assert loss() < plain

    def test_a_deep_copy_shares_and_a_pickled_one_is_unbound(self, unet, ffrnet):
        alone = copy.deepcopy(ffrnet)
        assert all(layer.base is unet.get_submodule(name) for name, layer in shared_layers(alone))
        together = copy.deepcopy({"unet": unet, "ffrnet": ffrnet})
        for name, layer in shared_layers(together["ffrnet"]):
            assert layer.base is together["unet"].get_submodule(name) is not unet.get_submodule(name)
        pickled = pickle.loads(pickle.dumps(ffrnet))
        assert not pickled.is_bound and not pickled.has_fused_lora()
        pickled.bind(unet)
        assert torch.equal(output(pickled, unet), output(ffrnet, unet))


class TestBinding:
    def test_another_width_is_refused_and_the_binding_stays(self, unet, ffrnet):
        expected = output(ffrnet, unet)
        with pytest.raises(InputError, match=r"unet has Linear\(48, .*at .*made for Linear\(32, "):
            ffrnet.bind(tiny.sd_unet(cross_attention_dim=48))
        with pytest.raises(InputError, match="does not fit FFRNet"):
            ffrnet.bind(
                tiny.sd_unet(
                    block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
                )
            )
        assert torch.equal(output(ffrnet, unet), expected)

    def test_the_layers_of_another_base(self, unet, ffrnet):
        torch.manual_seed(7)
        other = tiny.sd_unet().eval()
        ffrnet.bind(other)
        assert_close(output(ffrnet, unet), output(stock_controlnet(ffrnet, other.state_dict()), unet))

    def test_works_with_the_inpainting_model_of_the_family(self, unet, ffrnet):
        inpainting = tiny.sd_unet(in_channels=9).eval()
        weights = {name: tensor for name, tensor in unet.state_dict().items() if name != "conv_in.weight"}
        inpainting.load_state_dict(weights, strict=False)
        expected = output(ffrnet, unet)
        ffrnet.bind(inpainting)
        assert torch.equal(output(ffrnet, unet), expected)

    @pytest.mark.parametrize("rank", [0, -1, 1.5, True, "8"])
    def test_bad_ranks(self, unet, rank):
        with pytest.raises(InputError, match="rank must be a whole number"):
            FFRNet.from_unet(unet, rank=rank)

    def test_weights_on_another_device_come_along(self, unet, ffrnet):
        """Here FFRNet is on the meta device, where there is nothing to compute."""
        ffrnet.to("meta")
        down, mid = ffrnet(**inputs(unet, device="meta"))
        assert mid.is_meta and all(residual.is_meta for residual in down)


class TestWhatIsOnTheUnet:
    LORA = LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1", "proj_in"], init_lora_weights=False)

    def test_lora_is_not_seen_whenever_it_is_loaded(self, unet, ffrnet):
        expected = output(ffrnet, unet)
        text = torch.randn(2, 7, 32)
        without = unet(torch.ones(2, 4, 16, 16), 5, text).sample
        unet.add_adapter(self.LORA)
        assert not torch.allclose(unet(torch.ones(2, 4, 16, 16), 5, text).sample, without)
        assert torch.equal(output(ffrnet, unet), expected)
        ffrnet.bind(unet)
        assert torch.equal(output(ffrnet, unet), expected) and not ffrnet.has_fused_lora()
        fresh, plain = FFRNet.from_unet(unet, rank=RANK), FFRNet.from_unet(tiny.sd_unet(), rank=RANK)
        assert set(fresh.state_dict()) == set(plain.state_dict())
        unet.delete_adapters("default")
        assert torch.equal(output(ffrnet, unet), expected)

    def test_fused_lora_is_noticed(self, unet, ffrnet, caplog):
        expected = output(ffrnet, unet)
        unet.add_adapter(self.LORA)
        unet.fuse_lora()
        assert ffrnet.has_fused_lora()
        assert not torch.allclose(output(ffrnet, unet), expected)
        assert "unfuse_lora" not in caplog.text
        ffrnet.bind(unet)
        assert "unfuse_lora" in caplog.text
        unet.unfuse_lora()
        assert not ffrnet.has_fused_lora()
        torch.testing.assert_close(output(ffrnet, unet), expected, atol=1e-4, rtol=0)

    def test_hooks_and_processors_are_not_seen(self, unet, ffrnet):
        """The LoRA of a FaceID adapter is added by hooks, identity attention and IP-Adapters are processors."""

        class Nothing(AttnProcessor):
            def __call__(self, attn, hidden_states, *args, **kwargs):
                return torch.zeros_like(hidden_states)

        expected = output(ffrnet, unet)
        for module in unet.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, args, result: result + 1)
        unet.set_attn_processor(Nothing())
        assert torch.equal(output(ffrnet, unet), expected)

    def test_moving_and_casting_the_unet_later(self, unet, ffrnet):
        expected = output(ffrnet, unet)
        unet.to(torch.float64)
        assert_close(output(ffrnet, unet), expected)


class TestMemorySavers:
    def test_float8(self, unet, ffrnet):
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        ffrnet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        stored = {parameter.dtype for name, parameter in ffrnet.named_parameters() if ".down." in name}
        assert stored == {torch.float8_e4m3fn} == {unet.mid_block.resnets[0].conv1.weight.dtype}
        assert_close(output(ffrnet, unet), output(stock_controlnet(ffrnet, unet.state_dict()), unet))

    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    @pytest.mark.parametrize("blocks", [1, 2])
    def test_group_offload(self, kind, blocks, unet, ffrnet, tmp_path, monkeypatch):
        """Weights lie on disk until their hook brings them; what stands in for them meanwhile is not finite."""

        def nothing_like(tensor, **options):
            return torch.full_like(tensor, torch.nan, **options)

        expected = output(ffrnet, unet)
        noise, text = torch.ones(2, 4, 16, 16), torch.ones(2, 7, 32)
        image = unet(noise, 5, text).sample
        monkeypatch.setattr(torch, "empty_like", nothing_like)
        for net in (unet, ffrnet):
            folder = tmp_path / type(net).__name__
            options = {"offload_type": kind, "num_blocks_per_group": blocks, "offload_to_disk_path": str(folder)}
            net.enable_group_offload(torch.device("cpu"), **options)
        for _ in range(2):
            assert torch.equal(output(ffrnet, unet), expected)
            assert unet.mid_block.resnets[0].conv1.weight.isnan().all()
            with torch.no_grad():
                assert torch.equal(unet(noise, 5, text).sample, image)

    def test_model_offload_brings_the_unet_a_moment_earlier(self, unet, ffrnet):
        cpu_offload_with_hook(unet, torch.device("meta"))
        assert unet.device.type == "cpu"
        ffrnet.to("meta")
        assert ffrnet(**inputs(unet, device="meta"))[1].is_meta and unet.device.type == "meta"

    def test_sequential_offload(self, unet, ffrnet):
        expected = output(ffrnet, unet)
        for net in (unet, ffrnet):
            cpu_offload(net, torch.device("cpu"), offload_buffers=True)
        assert unet.mid_block.resnets[0].conv1.weight.is_meta and all(p.is_meta for p in ffrnet.parameters())
        for _ in range(2):
            assert torch.equal(output(ffrnet, unet), expected)

    def test_binds_to_an_offloaded_unet(self, unet, ffrnet):
        expected = output(ffrnet, unet)
        cpu_offload(unet, torch.device("cpu"))
        ffrnet.bind(unet)
        assert torch.equal(output(ffrnet, unet), expected)
        with pytest.raises(InputError, match="quantised or offloaded"):
            ffrnet.to_full()

    def test_base_of_torchao(self, unet, ffrnet):
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(unet, quantization.Int8WeightOnlyConfig())
        weights = {
            name: tensor.dequantize() if type(tensor) not in (torch.Tensor, nn.Parameter) else tensor
            for name, tensor in unet.state_dict().items()
        }
        assert type(unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight) is not nn.Parameter
        assert_close(output(ffrnet, unet), output(stock_controlnet(ffrnet, weights), unet), atol=1e-4)
        again = FFRNet.from_config(ffrnet.config).eval()
        again.load_state_dict(ffrnet.state_dict())
        again.bind(unet)
        assert torch.equal(output(again, unet), output(ffrnet, unet))
        with pytest.raises(InputError, match="quantised"):
            ffrnet.to_full()

    def test_base_of_gguf(self, unet, ffrnet):
        gguf = pytest.importorskip("gguf")
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        weights = dict(unet.state_dict())
        for name, module in list(unet.named_modules()):
            if isinstance(module, nn.Linear) and ".attn" in name:
                packed = gguf.quants.quantize(module.weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
                quantised = GGUFLinear(
                    module.in_features, module.out_features, module.bias is not None, compute_dtype=torch.float32
                )
                quantised.weight = GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
                quantised.bias = module.bias
                unet.set_submodule(name, quantised)
                unpacked = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
                weights[f"{name}.weight"] = torch.from_numpy(unpacked)
        ffrnet.bind(unet)
        assert_close(output(ffrnet, unet), output(stock_controlnet(ffrnet, weights), unet), atol=5e-4)

    def test_base_of_bitsandbytes(self, unet, ffrnet):
        bitsandbytes = pytest.importorskip("bitsandbytes")
        for name, module in list(unet.named_modules()):
            if isinstance(module, nn.Linear) and ".attn" in name:
                quantised = bitsandbytes.nn.Linear4bit(
                    module.in_features, module.out_features, module.bias is not None, quant_type="nf4"
                )
                quantised.load_state_dict(module.state_dict())
                unet.set_submodule(name, quantised.to("cpu"))
        ffrnet.bind(unet)
        layer = ffrnet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        assert type(layer.base) is bitsandbytes.nn.Linear4bit and layer.base.weight.dtype == torch.uint8
        x = torch.randn(2, 9, 64)
        assert_close(layer(x), layer.base(x) + x @ layer.weight_difference().T)
        assert torch.isfinite(output(ffrnet, unet)).all()


class TestCutting:
    def full(self, unet, cls=FFRNet):
        torch.manual_seed(0)
        net = FFRNet.from_unet(unet)
        for name, parameter in net.named_parameters():  # a difference of falling singular values, as training makes
            if name.startswith("controlnet") or parameter.ndim == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            else:
                u, s, vh = torch.linalg.svd(torch.randn_like(parameter.flatten(1)), full_matrices=False)
                parameter.data.add_(((u * 0.5 ** torch.arange(len(s))) @ vh).reshape(parameter.shape))
        if cls is FFRNet:
            return net.eval()
        stock = ControlNetModel.from_config(dict(net.config) | {"_class_name": "ControlNetModel"})
        stock.load_state_dict(net.state_dict())
        return stock.eval()

    def test_keeps_the_largest_singular_values(self, unet):
        full = self.full(unet)
        small, loss = FFRNet.from_controlnet(full, unet, 4)
        lost = whole = 0.0
        for name, _ in shared_layers(small):
            difference = full.get_submodule(name).weight.detach() - unet.get_submodule(name).weight
            s = np.linalg.svd(difference.flatten(1).double().numpy(), compute_uv=False)
            rest = np.square(s[4:]).sum()
            assert loss.layers[name] == pytest.approx(np.sqrt(rest / np.square(s).sum()), rel=0.02), name
            lost, whole = lost + rest, whole + np.square(s).sum()
        assert loss.total == pytest.approx(np.sqrt(lost / whole), rel=0.02) and 0.05 < loss.total < 0.2
        assert small.is_bound and not small.training
        worst = max(loss.layers, key=loss.layers.get)
        assert str(loss).startswith(f"{loss.total:.1%} of") and f"most in {worst} {loss.layers[worst]:.1%}" in str(
            loss
        )

    def test_comes_nearer_with_the_rank_until_nothing_is_lost(self, unet):
        full = self.full(unet)
        expected = output(full, unet)
        errors = []
        for rank in (1, 4, 12):
            small, loss = FFRNet.from_controlnet(full, unet, rank)
            errors.append(((output(small, unet) - expected).norm().item(), loss.total))
        assert errors == sorted(errors, reverse=True)
        exact = FFRNet.from_unet(unet, rank=RANK)
        disturbed(exact)
        small, loss = FFRNet.from_controlnet(exact.to_full(), unet, RANK)
        assert loss.total < 1e-3
        assert_close(output(small, unet), output(exact, unet), atol=1e-4)

    def test_large_layers_by_random_projection(self):
        torch.manual_seed(0)
        layer = SharedLayer(nn.Linear(300, 400), rank=8)
        u, _ = torch.linalg.qr(torch.randn(400, 300))
        v, _ = torch.linalg.qr(torch.randn(300, 300))
        s = 1 / torch.arange(1, 301)
        lost = layer.set_difference((u * s) @ v.T, torch.zeros(400))
        best = s[8:].square().sum().sqrt().item()
        assert best * 0.999 < lost < best * 1.01

    def test_another_controlnet_keeps_the_pooled_text(self):
        unet = tiny.xl_unet().eval()
        stock = self.full(unet, ControlNetModel)
        small, _ = FFRNet.from_controlnet(stock, unet, 30)
        assert small.config.pooled_text and not FFRNet.from_controlnet(self.full(unet), unet, 4)[0].config.pooled_text
        added = inputs(unet)["added_cond_kwargs"]
        added = {**added, "text_embeds": torch.randn(2, 32)}
        expected = output(stock, unet, added_cond_kwargs=added)
        error = (output(small, unet, added_cond_kwargs=added) - expected).norm()
        assert error < 0.1 * expected.norm()
        assert error < 0.5 * (output(small, unet) - expected).norm()

    def test_what_cannot_be_cut(self, unet, ffrnet):
        with pytest.raises(InputError, match="of rank 3 already"):
            FFRNet.from_controlnet(ffrnet, unet, 2)
        with pytest.raises(InputError, match="unet has"):
            FFRNet.from_controlnet(self.full(unet), tiny.sd_unet(cross_attention_dim=48), 2)

    def test_half_precision(self, unet):
        full = self.full(unet)
        small, _ = FFRNet.from_controlnet(full.half(), unet.half(), 4)
        assert {parameter.dtype for parameter in small.parameters()} == {torch.float16}


@pytest.mark.parametrize(("family", "share", "megabytes"), [("sd1", 0.08, 320), ("sdxl", 0.08, 1200)])
def test_sizes_at_rank_128(family, share, megabytes):
    """FFRNet adds at most 8 % to the UNet's weights, and an adapter in half precision is so many megabytes."""
    unet = empty_unet(family)
    with torch.device("meta"):
        ffrnet = FFRNet.from_unet(unet, rank=128)
        mixer = FacialAttributeMixer(unet.config.cross_attention_dim, num_tokens=16)
        parts = [ffrnet, mixer, IdentityAttention.from_unet(unet)]
    assert ffrnet.num_parameters() < share * unet.num_parameters()
    assert sum(part.num_parameters() for part in parts) * 2 / 1e6 < megabytes
