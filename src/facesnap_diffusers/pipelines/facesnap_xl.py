"""Text-to-image on Stable Diffusion XL."""

from diffusers import StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline

from .sdxl import FaceSnapSDXLMixin


class FaceSnapXLPipeline(FaceSnapSDXLMixin, StableDiffusionXLControlNetPipeline):
    r"""
    Text-to-image with the identity of a person from one photo: a stock [`StableDiffusionXLControlNetPipeline`] to which
    [`~FaceSnapAdapterMixin.load_facesnap_adapter`] adds a FaceSnap adapter.

    Loads any Stable Diffusion XL checkpoint with `from_pretrained`, `from_single_file` or `from_pipe`. Further ControlNets,
    LoRA, IP-Adapter, schedulers and offloading work as in the stock pipeline.

    Example:

    ```py
    from facesnap_diffusers import FaceSnapXLPipeline

    pipe = FaceSnapXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    pipe.load_facesnap_adapter("owner/adapter")
    image = pipe("portrait as an astronaut", face_image="photo.jpg").images[0]
    ```
    """

    _plain_class = StableDiffusionXLPipeline
    _control_image_argument = "image"
