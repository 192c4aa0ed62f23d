"""The web app as a Hugging Face Space: nano on a CPU, or a checkpoint of full size on a GPU or ZeroGPU."""

import os

import torch

from facesnap_diffusers.app.server import checkpoint_studio, nano_studio, serve


def make_studio():
    """The model that the Space's variables name; nano without them."""
    base = os.environ.get("FACESNAP_BASE")
    if not base:
        return nano_studio()
    # on ZeroGPU a model is moved to "cuda" at once, and a GPU is there while a decorated function runs
    return checkpoint_studio(base, os.environ.get("FACESNAP_ADAPTER"), "cuda", torch.float16)


def on_zero_gpu(studio):
    """Lets what needs the model ask ZeroGPU for a GPU, where the Space runs on it. Previews need none."""
    if os.environ.get("SPACES_ZERO_GPU") and os.environ.get("FACESNAP_BASE"):
        import spaces

        studio.steps = spaces.GPU(duration=int(os.environ.get("FACESNAP_SECONDS", "60")))(studio.steps)
        studio.encode = spaces.GPU(duration=15)(studio.encode)
    return studio


if __name__ == "__main__":
    serve(on_zero_gpu(make_studio()), host="0.0.0.0", port=7860)
