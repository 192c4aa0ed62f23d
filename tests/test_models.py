import copy
import json
import math

import pytest
import tiny
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)

from facesnap_diffusers import FacialAttributeMixer, FFRNet, IdentityAttention, InputError
from facesnap_diffusers.pipelines.control import RoutedControlNet, zero_residuals


NUM_TOKENS = 5


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return tiny.sd_unet().eval()


def random_inputs(unet, batch=2, text_length=7):
    generator = torch.Generator().manual_seed(1)
    width = unet.config.cross_attention_dim
    sample = torch.randn(batch, 4, 16, 16, generator=generator)
    text = torch.randn(batch, text_length, width, generator=generator)
    tokens = torch.randn(batch, NUM_TOKENS, width, generator=generator)
    return sample, text, tokens


class TestMixer:
    @staticmethod
    def mixer(**changes):
        torch.manual_seed(0)
        sizes = {"cross_attention_dim": 20, "face_embed_dim": 10, "image_embed_dim": 12, "num_tokens": NUM_TOKENS}
        sizes |= {"hidden_size": 16, "num_layers": 2, "attention_head_dim": 8, **changes}
        return FacialAttributeMixer(**sizes).eval()

    def test_equals_the_formula_in_plain_tensor_operations(self):
        """f_mix of DESIGN: fused = CrossAttn(id, [id; clip]), then a decoder over learned queries."""
        mixer = self.mixer()
        w = mixer.state_dict()
        face, image = torch.randn(3, 10), torch.randn(3, 7, 12)

        def linear(x, name):
            return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

        def norm(x, name):
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            return x * w[f"{name}.weight"] + w[f"{name}.bias"]

        def attention(x, context, name, heads=2):
            def split(y):
                return y.reshape(y.shape[0], y.shape[1], heads, -1).permute(0, 2, 1, 3)

            q, k, v = (split(linear(y, f"{name}.to_{p}")) for p, y in (("q", x), ("k", context), ("v", context)))
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            return linear((weights @ v).permute(0, 2, 1, 3).flatten(2), f"{name}.to_out.0")

        id_tokens = norm(linear(face, "face_proj").reshape(3, 4, 16), "face_norm")
        clip_tokens = norm(linear(image, "image_proj"), "image_norm")
        fused = attention(id_tokens, torch.cat([id_tokens, clip_tokens], 1), "fusion")
        x = w["queries"].expand(3, -1, -1)
        for i in range(2):
            layer = f"layers.{i}"
            normed = norm(x, f"{layer}.norm1")
            x = x + attention(normed, normed, f"{layer}.attn1")
            x = x + attention(norm(x, f"{layer}.norm2"), fused, f"{layer}.attn2")
            value, gate = linear(norm(x, f"{layer}.norm3"), f"{layer}.ff.net.0.proj").chunk(2, -1)
            gate = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
            x = x + linear(value * gate, f"{layer}.ff.net.2")
        expected = norm(linear(x, "proj_out"), "norm_out")

        with torch.no_grad():
            torch.testing.assert_close(mixer(face, image), expected, atol=1e-5, rtol=0)

    def test_shortcut_adds_a_linear_map_of_the_face_embeddings_tokens(self):
        plain, mixer = self.mixer(), self.mixer(face_shortcut=True)
        assert set(mixer.load_state_dict(plain.state_dict(), strict=False).missing_keys) == {
            "shortcut.weight",
            "shortcut.bias",
        }
        face, image = torch.randn(3, 10), torch.randn(3, 7, 12)
        with torch.no_grad():
            assert torch.equal(mixer(face, image), plain(face, image))  # at first
            mixer.shortcut.weight.normal_()
            mixer.shortcut.bias.normal_()
            plain.norm_out = mixer.norm_out = torch.nn.Identity()
            id_tokens = plain.face_norm(plain.face_proj(face).reshape(3, 4, 16)).reshape(3, 64)
            added = (id_tokens @ mixer.shortcut.weight.T + mixer.shortcut.bias).reshape(3, NUM_TOKENS, 20)
            torch.testing.assert_close(mixer(face, image), plain(face, image) + added)

    def test_unconditional_samples_get_the_learned_tokens(self):
        mixer = self.mixer()
        face, image = torch.randn(2, 10), torch.randn(2, 7, 12)
        tokens = mixer(face, image, unconditional=torch.tensor([False, True]))
        torch.testing.assert_close(tokens[0], mixer(face, image)[0])
        torch.testing.assert_close(tokens[1], mixer.norm_out(mixer.unconditional_tokens))

    def test_one_feature_suffices(self):
        face, image = torch.randn(2, 10), torch.randn(2, 7, 12)
        assert self.mixer(image_embed_dim=None)(face).shape == (2, NUM_TOKENS, 20)
        assert self.mixer(face_embed_dim=None)(None, image).shape == (2, NUM_TOKENS, 20)

    @pytest.mark.parametrize(
        ("face", "image", "message"),
        [
            (torch.zeros(2, 9), torch.zeros(2, 7, 12), "face_embeds must have shape"),
            (torch.zeros(10), torch.zeros(2, 7, 12), "face_embeds must have shape"),
            (None, torch.zeros(2, 7, 12), "face_embeds must have shape"),
            (torch.zeros(2, 10), None, "image_hidden_states must have shape"),
            (torch.zeros(2, 10), torch.zeros(2, 12), "image_hidden_states must have shape"),
        ],
    )
    def test_wrong_inputs(self, face, image, message):
        with pytest.raises(InputError, match=message):
            self.mixer()(face, image)

    @pytest.mark.parametrize(
        "changes",
        [
            {"face_embed_dim": None, "image_embed_dim": None},
            {"hidden_size": 12},
            {"face_embed_dim": None, "face_shortcut": True},
        ],
    )
    def test_wrong_sizes(self, changes):
        with pytest.raises(InputError):
            self.mixer(**changes)

    def test_bfloat16(self):
        mixer = self.mixer().bfloat16()
        tokens = mixer(torch.randn(2, 10).bfloat16(), torch.randn(2, 7, 12).bfloat16(), torch.tensor([True, False]))
        assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()


class TestIdentityAttention:
    def test_equals_the_stock_ip_adapter_processor(self, unet):
        """Same projections, same tokens: the UNet's output is that of diffusers' IPAdapterAttnProcessor2_0."""
        identity_attention = IdentityAttention.from_unet(unet)
        for parameter in identity_attention.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        sample, text, tokens = random_inputs(unet)

        stock = {}
        for name, processor in unet.attn_processors.items():
            layer = name.removesuffix(".processor")
            if layer not in identity_attention.config.layers:
                stock[name] = processor
                continue
            width, inner = identity_attention.config.layers[layer]
            stock[name] = IPAdapterAttnProcessor2_0(inner, width, num_tokens=(NUM_TOKENS,), scale=0.7)
            projection = identity_attention.projections[layer.replace(".", "-")]
            stock[name].to_k_ip[0].load_state_dict(projection.to_k.state_dict())
            stock[name].to_v_ip[0].load_state_dict(projection.to_v.state_dict())
        reference = tiny.sd_unet().eval()
        reference.load_state_dict(unet.state_dict())
        reference.set_attn_processor(stock)
        hidden_states = (text, [tokens[:, None]])
        reference.process_encoder_hidden_states = lambda encoder_hidden_states, added_cond_kwargs: hidden_states

        context = identity_attention.context(unet, NUM_TOKENS, scale=0.7)
        with torch.no_grad():
            ours = unet(sample, 500, torch.cat([text, tokens], 1), cross_attention_kwargs=context.as_kwargs()).sample
            theirs = reference(sample, 500, text).sample
            plain = tiny_forward_without_identity(unet, sample, text)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert (ours - plain).abs().max() > 1e-3

    def test_the_unet_is_stock_without_a_context(self, unet):
        """Its processors and keys are as before, also while a context is in use; so is its output, bit for bit."""
        sample, text, tokens = random_inputs(unet)
        plain = tiny_forward_without_identity(unet, sample, text)
        before, keys = unet.attn_processors, set(unet.state_dict())
        context = IdentityAttention.from_unet(unet).context(unet, NUM_TOKENS)
        with torch.no_grad():
            unet(sample, 500, torch.cat([text, tokens], 1), cross_attention_kwargs=context.as_kwargs())
            assert torch.equal(unet(sample, 500, text).sample, plain)
        assert unet.attn_processors == before and set(unet.state_dict()) == keys

    @pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(2), FusedAttnProcessor2_0()])
    def test_with_another_processor(self, unet, processor):
        """Identity attention joins what the layer's own processor computes."""
        identity_attention = IdentityAttention.from_unet(unet)
        sample, text, tokens = random_inputs(unet)
        inputs = (sample, 500, torch.cat([text, tokens], 1))
        context = identity_attention.context(unet, NUM_TOKENS, 0.7)
        other = copy.deepcopy(unet)
        if isinstance(processor, FusedAttnProcessor2_0):
            other.fuse_qkv_projections()
        else:
            other.set_attn_processor(processor)
        with torch.no_grad():
            expected = unet(*inputs, cross_attention_kwargs=context.as_kwargs()).sample
            actual = other(*inputs, cross_attention_kwargs=context.as_kwargs()).sample
            plain = other(sample, 500, text).sample
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        assert (actual - plain).abs().max() > 1e-3

    def test_scale_by_layer(self, unet):
        identity_attention = IdentityAttention.from_unet(unet)
        sample, text, tokens = random_inputs(unet)
        inputs = (sample, 500, torch.cat([text, tokens], 1))

        def output(scale):
            context = identity_attention.context(unet, NUM_TOKENS, scale)
            with torch.no_grad():
                return unet(*inputs, cross_attention_kwargs=context.as_kwargs()).sample

        everywhere = {"down_blocks": 0.5, "mid_block": 0.5, "up_blocks": 0.5}
        assert torch.equal(output(0.5), output(everywhere))
        assert torch.equal(output(everywhere | {"mid_block": 0.0}), output({"down_blocks": 0.5, "up_blocks": 0.5}))
        assert not torch.equal(output(0.5), output({"mid_block": 0.5}))
        layer = next(iter(identity_attention.config.layers))
        assert torch.equal(output({layer: 0.5}), output({layer: 0.5, layer.split(".")[0]: 0.0}))

    def test_gradients_reach_the_projections_only(self, unet):
        identity_attention = IdentityAttention.from_unet(unet)
        unet.requires_grad_(False)
        sample, text, tokens = random_inputs(unet)
        context = identity_attention.context(unet, NUM_TOKENS).as_kwargs()
        output = unet(sample, 500, torch.cat([text, tokens], 1), cross_attention_kwargs=context).sample
        output.square().mean().backward()
        assert all(parameter.grad is not None for parameter in identity_attention.parameters())
        assert all(parameter.grad is None for parameter in unet.parameters())

    def test_does_not_fit_another_unet(self, unet):
        with pytest.raises(InputError, match="does not fit"):
            IdentityAttention.from_unet(unet).check_fits(tiny.sd_unet(cross_attention_dim=48))


def tiny_forward_without_identity(unet, sample, text):
    stock = tiny.sd_unet().eval()
    stock.load_state_dict({key: value for key, value in unet.state_dict().items() if "processor" not in key})
    return stock(sample, 500, text).sample


class TestFFRNet:
    @pytest.fixture(scope="class")
    def ffrnet(self, unet):
        ffrnet = FFRNet.from_unet(unet).eval()
        for parameter in ffrnet.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return ffrnet

    def routed(self, ffrnet):
        return RoutedControlNet(ffrnet, NUM_TOKENS, "identity")

    @torch.no_grad()
    def test_equals_a_stock_controlnet_on_the_identity_tokens(self, unet, ffrnet):
        stock = ControlNetModel.from_config(ffrnet.config).eval()
        stock.load_state_dict(ffrnet.state_dict())
        sample, text, tokens = random_inputs(unet)
        image = torch.rand(2, 3, 128, 128)
        context = torch.cat([text, tokens], 1)
        down, mid = self.routed(ffrnet)(sample, 500, context, image, conditioning_scale=0.6, return_dict=False)
        expected_down, expected_mid = stock(sample, 500, tokens, image, conditioning_scale=0.6, return_dict=False)
        for ours, theirs in zip([*down, mid], [*expected_down, expected_mid], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)

    @torch.no_grad()
    def test_never_sees_the_text(self, unet, ffrnet):
        sample, text, tokens = random_inputs(unet)
        image = torch.rand(2, 3, 128, 128)
        _, mid = self.routed(ffrnet)(sample, 500, torch.cat([text, tokens], 1), image, return_dict=False)
        _, other = self.routed(ffrnet)(sample, 500, torch.cat([-text, tokens], 1), image, return_dict=False)
        _, person = self.routed(ffrnet)(sample, 500, torch.cat([text, -tokens], 1), image, return_dict=False)
        assert torch.equal(mid, other) and not torch.equal(mid, person)

    @torch.no_grad()
    def test_never_sees_the_pooled_text_of_xl(self):
        torch.manual_seed(0)
        unet = tiny.xl_unet()
        ffrnet = FFRNet.from_unet(unet).eval()
        torch.nn.init.normal_(ffrnet.controlnet_mid_block.weight)
        sample, _, tokens = random_inputs(unet)
        conditions = {"text_embeds": torch.randn(2, 32), "time_ids": torch.randn(2, 6)}

        def mid(**changes):
            image = torch.ones(2, 3, 128, 128)
            added_cond_kwargs = {**conditions, **changes}
            return ffrnet(sample, 5, tokens, image, added_cond_kwargs=added_cond_kwargs, return_dict=False)[1]

        assert torch.equal(mid(), mid(text_embeds=torch.randn(2, 32)))
        assert not torch.equal(mid(), mid(time_ids=torch.randn(2, 6)))

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(16, 16), (18, 22), (17, 23)])
    @pytest.mark.parametrize("make_unet", [tiny.sd_unet, tiny.xl_unet])
    def test_skipped_residuals_have_the_shapes_of_real_ones(self, make_unet, size):
        unet = make_unet()
        ffrnet = FFRNet.from_unet(unet)
        sample, tokens = torch.randn(2, 4, *size), torch.randn(2, NUM_TOKENS, unet.config.cross_attention_dim)
        calls = []
        ffrnet.register_forward_hook(lambda *args: calls.append(1))
        conditions = {"text_embeds": torch.zeros(2, 32), "time_ids": torch.zeros(2, 6)}
        image = torch.rand(2, 3, size[0] * 8, size[1] * 8)
        down, mid = ffrnet(sample, 5, tokens, image, added_cond_kwargs=conditions, return_dict=False)
        zero_down, zero_mid = zero_residuals(ffrnet, sample)
        assert len(calls) == 1 and not zero_mid.any() and not any(residual.any() for residual in zero_down)
        assert [residual.shape for residual in [*down, mid]] == [residual.shape for residual in [*zero_down, zero_mid]]

    def test_no_inpainting_unet(self):
        with pytest.raises(InputError, match="plain base model"):
            FFRNet.from_unet(tiny.sd_unet(in_channels=9))


@pytest.mark.parametrize("part", ["mixer", "ffrnet"])
def test_no_graph_breaks(unet, part):
    sample, _, tokens = random_inputs(unet)
    if part == "mixer":
        module, inputs = TestMixer.mixer(), (torch.randn(2, 10), torch.randn(2, 7, 12), torch.tensor([False, True]))
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
    parts = [TestMixer.mixer(), IdentityAttention.from_unet(unet), FFRNet.from_unet(unet)]
    for part in parts:
        part.save_pretrained(tmp_path / type(part).__name__)
        loaded = type(part).from_pretrained(tmp_path / type(part).__name__)
        assert sizes_of(loaded) == sizes_of(part)
        for name, parameter in part.state_dict().items():
            assert torch.equal(parameter, loaded.state_dict()[name]), name


def sizes_of(part):
    return {name: value for name, value in json.loads(part.to_json_string()).items() if not name.startswith("_")}
