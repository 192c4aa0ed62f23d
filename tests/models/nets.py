"""Tiny nets and inputs for them."""

import torch

from facesnap_diffusers import FacialAttributeMixer


NUM_TOKENS = 5


def mixer(**changes):
    torch.manual_seed(0)
    sizes = {"cross_attention_dim": 20, "face_embed_dim": 10, "image_embed_dim": 12, "num_tokens": NUM_TOKENS}
    sizes |= {"hidden_size": 16, "num_layers": 2, "attention_head_dim": 8, **changes}
    return FacialAttributeMixer(**sizes).eval()


def random_inputs(unet, batch=2, text_length=7):
    """Latents, and a context of text and identity tokens."""
    generator = torch.Generator().manual_seed(1)
    width = unet.config.cross_attention_dim
    sample = torch.randn(batch, 4, 16, 16, generator=generator)
    text = torch.randn(batch, text_length, width, generator=generator)
    tokens = torch.randn(batch, NUM_TOKENS, width, generator=generator)
    return sample, text, tokens
