"""FaceSnap's mixer: from a face embedding and image features to identity tokens."""

import math

import nets
import pytest
import torch

from facesnap_diffusers import InputError


class TestMixer:
    def test_equals_the_formula_in_plain_tensor_operations(self):
        """f_mix of arXiv 2602.00627, section 3.2: fused = CrossAttn(id, [id; clip]), then a decoder over learned queries."""
        mixer = nets.mixer()
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
        plain, mixer = nets.mixer(), nets.mixer(face_shortcut=True)
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
            added = (id_tokens @ mixer.shortcut.weight.T + mixer.shortcut.bias).reshape(3, nets.NUM_TOKENS, 20)
            torch.testing.assert_close(mixer(face, image), plain(face, image) + added)

    def test_unconditional_samples_get_the_learned_tokens(self):
        mixer = nets.mixer()
        face, image = torch.randn(2, 10), torch.randn(2, 7, 12)
        tokens = mixer(face, image, unconditional=torch.tensor([False, True]))
        torch.testing.assert_close(tokens[0], mixer(face, image)[0])
        torch.testing.assert_close(tokens[1], mixer.norm_out(mixer.unconditional_tokens))

    def test_one_feature_suffices(self):
        face, image = torch.randn(2, 10), torch.randn(2, 7, 12)
        assert nets.mixer(image_embed_dim=None)(face).shape == (2, nets.NUM_TOKENS, 20)
        assert nets.mixer(face_embed_dim=None)(None, image).shape == (2, nets.NUM_TOKENS, 20)

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
            nets.mixer()(face, image)

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
            nets.mixer(**changes)

    def test_bfloat16(self):
        mixer = nets.mixer().bfloat16()
        tokens = mixer(torch.randn(2, 10).bfloat16(), torch.randn(2, 7, 12).bfloat16(), torch.tensor([True, False]))
        assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()
