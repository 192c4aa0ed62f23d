"""
A portrait of the person in a photo, on any Stable Diffusion XL checkpoint. `facesnap generate` does the same with options.

    python examples/portrait.py photo.jpg "portrait as an astronaut" BASE_MODEL
"""

import sys

import torch

from facesnap_diffusers import FaceSnapXLPipeline, HeadPose


def main(photo: str, prompt: str, base: str) -> None:
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = FaceSnapXLPipeline.from_pretrained(base, dtype=dtype).to(device)
    pipe.load_facesnap_adapter()  # InstantID, unless you name another adapter

    identity = pipe.encode_face(photo)  # once; `identity.save(path)` keeps it
    for yaw in (-30, 0, 30):
        image = pipe(
            prompt, identity=identity, pose=HeadPose(yaw=yaw), generator=torch.Generator().manual_seed(0)
        ).images[0]
        image.save(f"portrait{yaw:+d}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
