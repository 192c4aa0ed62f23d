"""A FaceSnap adapter on a base model in full size, with random weights: load, save, one step; the size of each part.

python benchmarks/full_size.py sd1 --dtype float32     the fastest on a CPU
python benchmarks/full_size.py sdxl --dtype bfloat16   half the memory
"""

import argparse
import resource
import tempfile
import time

import torch
from diffusers import DDIMScheduler

from facesnap_diffusers import FaceIdentity, FaceSnapConfig, FaceSnapPipeline, FaceSnapXLPipeline
from facesnap_diffusers.base_models import UNET_CONFIGS, empty_unet


def random_unet(family: str, dtype: torch.dtype) -> torch.nn.Module:
    unet = empty_unet(family).to(dtype).to_empty(device="cpu")
    for parameter in unet.parameters():
        parameter.data.fill_(1.0) if parameter.ndim == 1 else parameter.data.normal_(std=0.02)
    return unet.eval()


def bare_pipeline(family: str, unet: torch.nn.Module) -> FaceSnapPipeline | FaceSnapXLPipeline:
    """Without VAE and text encoders: they are not changed by an adapter."""
    absent = {"vae": None, "text_encoder": None, "tokenizer": None}
    if family == "sdxl":
        absent |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        return FaceSnapXLPipeline(**absent, unet=unet, scheduler=DDIMScheduler())
    return FaceSnapPipeline(**absent, unet=unet, scheduler=DDIMScheduler(), requires_safety_checker=False)


def main(family: str, dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    pipe = bare_pipeline(family, random_unet(family, dtype))
    pipe.init_facesnap_adapter(FaceSnapConfig(image_encoder=None))
    parts = {name: getattr(pipe, name) for name in ("unet", *pipe.facesnap_config.parts)}
    for name, part in parts.items():
        count = sum(parameter.numel() for parameter in part.parameters())
        bytes_ = sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
        print(f"{name:20} {count:>13,} parameters {bytes_ / 1e6:>8,.1f} MB in {part.dtype}")

    with tempfile.TemporaryDirectory() as folder:
        pipe.save_facesnap_adapter(folder)
        pipe.unload_facesnap_adapter()
        pipe.load_facesnap_adapter(folder)
    print("saved and loaded")

    width = pipe.unet.config.cross_attention_dim
    text = {"prompt_embeds": torch.randn(1, 77, width, dtype=dtype)}
    if family == "sdxl":
        text["pooled_prompt_embeds"] = torch.randn(1, 1280, dtype=dtype)
    person = FaceIdentity(face_embeds=torch.randn(512), face_encoder=pipe.facesnap_config.face_encoder)
    start = time.perf_counter()
    latents = pipe(
        **text,
        identity=person,
        height=size,
        width=size,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
    ).images
    print(f"one step at {size}×{size}: {tuple(latents.shape)}, finite: {bool(latents.isfinite().all())},")
    print(
        f"{time.perf_counter() - start:.0f} s, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(UNET_CONFIGS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--size", type=int, default=256, help="height and width of the image in pixels")
    arguments = parser.parse_args()
    main(arguments.family, getattr(torch, arguments.dtype), arguments.size)
