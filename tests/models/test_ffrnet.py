"""FFRNet against a stock ControlNet, and how it is routed."""

import pytest
import tiny
import torch
from diffusers import ControlNetModel
from nets import NUM_TOKENS, random_inputs

from facesnap_diffusers import FFRNet, InputError
from facesnap_diffusers.pipelines.control import RoutedControlNet, zero_residuals


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
    @pytest.mark.parametrize("order", ["rgb", "bgr"])
    def test_embeds_the_landmark_picture_once(self, unet, order):
        ffrnet = FFRNet.from_unet(unet, controlnet_conditioning_channel_order=order).eval()
        for parameter in ffrnet.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        stock = ControlNetModel.from_config(ffrnet.config).eval()
        stock.load_state_dict(ffrnet.state_dict())
        sample, text, tokens = random_inputs(unet)
        context, image, runs = torch.cat([text, tokens], 1), torch.rand(2, 3, 128, 128), []
        ffrnet.controlnet_cond_embedding.conv_in.register_forward_hook(lambda *_: runs.append(1))
        routed = self.routed(ffrnet)
        for timestep in (500, 400, 300):
            down, mid = routed(sample, timestep, context, image, return_dict=False)
            expected_down, expected_mid = stock(sample, timestep, tokens, image, return_dict=False)
            assert all(torch.equal(*pair) for pair in zip([*down, mid], [*expected_down, expected_mid], strict=True))
        assert len(runs) == 1
        routed(sample, 300, context, image.flip(0), return_dict=False)
        routed(sample[:1], 300, context[:1], image, return_dict=False)
        assert len(runs) == 3, "another picture, or a part of the batch, is embedded anew"

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
