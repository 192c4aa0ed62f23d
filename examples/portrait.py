"""
A portrait of the person in a photo.

    python examples/portrait.py photo.jpg "portrait as an astronaut" --base BASE_MODEL --adapter ADAPTER --yaw 20
"""

import argparse

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from facesnap_diffusers import FaceSnapPipeline, FaceSnapXLPipeline, HeadPose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="+", help="one photo, or several of the same person")
    parser.add_argument("prompt")
    parser.add_argument("--base", required=True, help="Stable Diffusion checkpoint: Hub repo or folder")
    parser.add_argument("--adapter", required=True, help="FaceSnap adapter: Hub repo or folder")
    parser.add_argument("--negative", default="blurry, deformed", help="negative prompt")
    parser.add_argument("--yaw", type=float, help="degrees; without it the pose of the photo")
    parser.add_argument("--expression", help="smile, laugh, surprise...; without it that of the photo")
    parser.add_argument("--identity-scale", type=float, default=1.0)
    parser.add_argument("--landmark-scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="portrait.png")
    arguments = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    base = DiffusionPipeline.from_pretrained(arguments.base, dtype=torch.float16 if on_gpu else torch.float32)
    pipeline_class = FaceSnapXLPipeline if isinstance(base, StableDiffusionXLPipeline) else FaceSnapPipeline
    pipe = pipeline_class.from_pipe(base)
    pipe.load_facesnap_adapter(arguments.adapter)
    pipe.set_facesnap_scale(identity_scale=arguments.identity_scale, landmark_scale=arguments.landmark_scale)
    if on_gpu:
        pipe.enable_model_cpu_offload()

    image = pipe(
        arguments.prompt,
        face_image=arguments.photo,
        negative_prompt=arguments.negative,
        pose=None if arguments.yaw is None else HeadPose(yaw=arguments.yaw),
        expression=arguments.expression,
        num_inference_steps=arguments.steps,
        generator=torch.Generator().manual_seed(arguments.seed),
    ).images[0]
    image.save(arguments.output)


if __name__ == "__main__":
    main()
