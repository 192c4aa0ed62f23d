"""
Third-party checkpoints with random weights: the public key layouts, with shapes that fit a base model. For a UNet on
the meta device there are shapes without weights.
"""

import numpy as np
import tiny
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel

from facesnap_diffusers import FaceIdentity
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.interop.conversion import FACEID_PLUS_IMAGE_ENCODER


FACE_WIDTH = 512
CLIP_WIDTH = 24


def faceid(unet, num_tokens=4, lora_rank=4, seed=0, face_width=FACE_WIDTH):
    """IP-Adapter FaceID; with 16 tokens and no LoRA, FaceID-Portrait."""
    make = _maker(unet, seed)
    width = unet.config.cross_attention_dim
    image_proj = {
        **_linear(make, "proj.0", face_width, 2 * face_width),
        **_linear(make, "proj.2", 2 * face_width, num_tokens * width),
        **_norm(make, "norm", width),
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, lora_rank)}


def faceid_plus(unet, num_tokens=4, lora_rank=4, clip_width=CLIP_WIDTH, seed=0, face_width=FACE_WIDTH):
    """IP-Adapter FaceID-Plus; version 2 has the same layout."""
    make = _maker(unet, seed)
    width = unet.config.cross_attention_dim
    image_proj = {
        **_linear(make, "proj.0", face_width, 2 * face_width),
        **_linear(make, "proj.2", 2 * face_width, num_tokens * width),
        **_norm(make, "norm", width),
        **{f"perceiver_resampler.{k}": v for k, v in _resampler(make, clip_width, width, width).items()},
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, lora_rank)}


def instantid(unet, num_tokens=16, hidden=128, seed=0):
    """InstantID's ip-adapter.bin, and IP-Adapter FaceID-Portrait "unnorm"."""
    make = _maker(unet, seed)
    image_proj = {
        "latents": make(1, num_tokens, hidden),
        **_resampler(make, FACE_WIDTH, hidden, unet.config.cross_attention_dim),
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, 0)}


def plus_face(unet, num_tokens=16, hidden=64, clip_width=CLIP_WIDTH, seed=0):
    """IP-Adapter plus-face (and Plus)."""
    make = _maker(unet, seed)
    image_proj = {
        "latents": make(1, num_tokens, hidden),
        **_resampler(make, clip_width, hidden, unet.config.cross_attention_dim),
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, 0)}


def full_face(unet, clip_width=CLIP_WIDTH, seed=0):
    """IP-Adapter full-face."""
    make = _maker(unet, seed)
    width = unet.config.cross_attention_dim
    image_proj = {
        **_linear(make, "proj.0", clip_width, clip_width),
        **_linear(make, "proj.2", clip_width, width),
        **_norm(make, "proj.3", width),
    }
    return {"image_proj": image_proj, "ip_adapter": attention(make, unet, 0)}


def portrait(unet):
    return faceid(unet, num_tokens=16, lora_rank=0)


#: public file name: its content
VARIANTS = {
    "ip-adapter-faceid_sd15": faceid,
    "ip-adapter-faceid-plus_sd15": faceid_plus,
    "ip-adapter-faceid-plusv2_sd15": faceid_plus,
    "ip-adapter-faceid-portrait_sd15": portrait,
    "ip-adapter-faceid_sdxl": faceid,
    "ip-adapter-faceid-plusv2_sdxl": faceid_plus,
    "ip-adapter-faceid-portrait_sdxl": portrait,
    "ip-adapter-faceid-portrait_sdxl_unnorm": instantid,
    "ip-adapter-plus-face_sd15": plus_face,
    "ip-adapter-full-face_sd15": full_face,
    "ip-adapter-plus-face_sdxl_vit-h": plus_face,
    "ip-adapter-full-face_sdxl": full_face,
}

#: Those that look at an image encoder's features of the photo.
WITH_IMAGE_FEATURES = (faceid_plus, plus_face, full_face)


def trained(checkpoint):
    """A checkpoint as IP-Adapter's training script writes it: other names, and the whole UNet with it."""
    names = {"image_proj": "image_proj_model", "ip_adapter": "adapter_modules"}
    own = {f"{names[group]}.{key}": value for group, tensors in checkpoint.items() for key, value in tensors.items()}
    return {"unet.conv_in.weight": torch.zeros(4, 4, 3, 3), **own}


def instantid_controlnet(unet):
    """InstantID's ControlNet; its zero layers have values too, so that it changes the image."""
    torch.manual_seed(7)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    for parameter in controlnet.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return controlnet


def ip_adapter(unet):
    """A stock IP-Adapter with random weights, in the layout of the public files."""
    generator = torch.Generator().manual_seed(0)
    attention = {}
    for i, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        shape = layer.to_k.weight.shape
        attention[f"{2 * i + 1}.to_k_ip.weight"] = 0.2 * torch.randn(shape, generator=generator)
        attention[f"{2 * i + 1}.to_v_ip.weight"] = 0.2 * torch.randn(shape, generator=generator)
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * width, 16, generator=generator),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": attention}


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


def faceid_person(image_features=False, length=1.0, seed=5, crop="#arcface"):
    """Somebody as the recognizer of the FaceID family sees them, with CLIP features, by default for FaceID-Plus."""
    states = torch.randn(5, CLIP_WIDTH, generator=torch.Generator().manual_seed(seed))
    return FaceIdentity(
        face_embeds=length * _direction(seed),
        face_encoder_id="insightface/w600k_r50",
        image_hidden_states=states if image_features else None,
        image_encoder_id=f"{FACEID_PLUS_IMAGE_ENCODER}{crop}" if image_features else None,
    )


def person_for(name, seed=5):
    """Somebody as the encoders of one of [`VARIANTS`] see them."""
    if name not in VARIANTS:
        return instantid_person(seed=seed)
    crop = "#arcface" if "faceid" in name else ""
    length = 20.0 if "unnorm" in name else 1.0
    return faceid_person(VARIANTS[name] in WITH_IMAGE_FEATURES, length, seed, crop)


def instantid_person(length=21.0, seed=5):
    """Somebody as InstantID's recognizer sees them, which gives embeddings of about this length."""
    return FaceIdentity(
        face_embeds=length * _direction(seed),
        face_encoder_id="insightface/glintr100",
        landmarks=tiny.face_points(),
        photo_size=(100, 120),
    )


def photo_and_face(encoder, size=64, seed=0, length=21.0):
    """A photo of random blotches, and a face in it whose key points are not quite those of its landmarks."""
    rng = np.random.default_rng(seed)
    photo = np.kron(rng.integers(0, 256, (size // 4, size // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    landmarks = (tiny.face_points().numpy() - [60, 50]) * 0.6 + size / 2 + rng.normal(0, 0.3, (68, 2))
    landmarks = landmarks.astype(np.float32)
    box = np.array([*landmarks.min(0), *landmarks.max(0)], np.float32)
    embedding = (length * _direction(seed)).numpy()
    eyes = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    key_points = np.stack([*eyes, *landmarks[[30, 48, 54]]]) + rng.uniform(-1.5, 1.5, (5, 2)).astype(np.float32)
    return photo, Face(photo, box, landmarks, embedding, 0.9, encoder, key_points)


class FixedAnalyzer:
    """A face analyzer whose answers are fixed: the face whose photo it is shown."""

    def __init__(self, *faces):
        self.faces = faces
        self.encoder = faces[0].encoder
        self.embedding_dim = len(faces[0].embedding)

    def analyze(self, image):
        return [face for face in self.faces if np.array_equal(face.image, image)]


def _direction(seed):
    return F.normalize(torch.randn(FACE_WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


def _maker(unet, seed):
    if unet.device.type == "meta":
        return lambda *shape: torch.empty(shape, device="meta")
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.5 * shape[-1] ** -0.5


def _linear(make, name, inputs, outputs):
    return {f"{name}.weight": make(outputs, inputs), f"{name}.bias": make(outputs)}


def _norm(make, name, width):
    return {f"{name}.weight": 1 + make(width), f"{name}.bias": make(width)}


def _resampler(make, inputs, width, outputs, depth=4):
    inner = 64 * max(1, width // 64)  # heads of 64 channels
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
