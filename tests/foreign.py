"""Other people's checkpoints with random weights: the public key layouts, with shapes that fit the tiny base models."""

import torch


FACE_WIDTH = 512
CLIP_WIDTH = 24


def faceid(unet, num_tokens=4, lora_rank=4, seed=0):
    """IP-Adapter FaceID; with 16 tokens and no LoRA, FaceID-Portrait."""
    make = _maker(seed)
    width = unet.config.cross_attention_dim
    image_proj = {
        **_linear(make, "proj.0", FACE_WIDTH, 2 * FACE_WIDTH),
        **_linear(make, "proj.2", 2 * FACE_WIDTH, num_tokens * width),
        **_norm(make, "norm", width),
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, lora_rank)}


def faceid_plus(unet, num_tokens=4, lora_rank=4, seed=0):
    """IP-Adapter FaceID-Plus; version 2 has the same layout."""
    make = _maker(seed)
    width = unet.config.cross_attention_dim
    image_proj = {
        **_linear(make, "proj.0", FACE_WIDTH, 2 * FACE_WIDTH),
        **_linear(make, "proj.2", 2 * FACE_WIDTH, num_tokens * width),
        **_norm(make, "norm", width),
        **{f"perceiver_resampler.{k}": v for k, v in _resampler(make, CLIP_WIDTH, width, width, heads=1).items()},
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, lora_rank)}


def instantid(unet, num_tokens=16, hidden=128, seed=0):
    """InstantID's ip-adapter.bin."""
    make = _maker(seed)
    image_proj = {
        "latents": make(1, num_tokens, hidden),
        **_resampler(make, FACE_WIDTH, hidden, unet.config.cross_attention_dim, heads=2),
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, 0)}


def attention(make, unet, lora_rank):
    tensors = {}
    for number, name in enumerate(unet.attn_processors):
        attn = unet.get_submodule(name.removesuffix(".processor"))
        inner, context = attn.to_k.out_features, attn.to_k.in_features
        if lora_rank:
            linears = {"to_q": attn.to_q, "to_k": attn.to_k, "to_v": attn.to_v, "to_out": attn.to_out[0]}
            for key, linear in linears.items():
                tensors[f"{number}.{key}_lora.down.weight"] = make(lora_rank, linear.in_features)
                tensors[f"{number}.{key}_lora.up.weight"] = make(linear.out_features, lora_rank)
        if name.endswith("attn2.processor"):
            tensors[f"{number}.to_k_ip.weight"] = make(inner, context)
            tensors[f"{number}.to_v_ip.weight"] = make(inner, context)
    return tensors


def flat(checkpoint):
    """The same as it stands in a `.safetensors` file."""
    return {f"{group}.{key}": value for group, tensors in checkpoint.items() for key, value in tensors.items()}


def _maker(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.5 * shape[-1] ** -0.5


def _linear(make, name, inputs, outputs):
    return {f"{name}.weight": make(outputs, inputs), f"{name}.bias": make(outputs)}


def _norm(make, name, width):
    return {f"{name}.weight": 1 + make(width), f"{name}.bias": make(width)}


def _resampler(make, inputs, width, outputs, heads, depth=4):
    inner = 64 * heads
    tensors = {
        **_linear(make, "proj_in", inputs, width),
        **_linear(make, "proj_out", width, outputs),
        **_norm(make, "norm_out", outputs),
    }
    for i in range(depth):
        tensors |= {
            **_norm(make, f"layers.{i}.0.norm1", width),
            **_norm(make, f"layers.{i}.0.norm2", width),
            f"layers.{i}.0.to_q.weight": make(inner, width),
            f"layers.{i}.0.to_kv.weight": make(2 * inner, width),
            f"layers.{i}.0.to_out.weight": make(width, inner),
            **_norm(make, f"layers.{i}.1.0", width),
            f"layers.{i}.1.1.weight": make(4 * width, width),
            f"layers.{i}.1.3.weight": make(width, 4 * width),
        }
    return tensors
