"""Identity attention against the stock attention of diffusers."""

import copy

import pytest
import tiny
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from nets import NUM_TOKENS, random_inputs

from facesnap_diffusers import IdentityAttention, InputError


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
