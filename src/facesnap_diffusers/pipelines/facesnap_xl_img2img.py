"""Image-to-image on Stable Diffusion XL."""

from diffusers import StableDiffusionXLControlNetImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline

from .picture import PictureMixin
from .sdxl import FaceSnapSDXLMixin


class FaceSnapXLImg2ImgPipeline(PictureMixin, FaceSnapSDXLMixin, StableDiffusionXLControlNetImg2ImgPipeline):
    r"""
    Image-to-image with the identity of a person from one photo: a stock [`StableDiffusionXLControlNetImg2ImgPipeline`] to which
    [`~FaceSnapAdapterMixin.load_facesnap_adapter`] adds a FaceSnap adapter.

    Loads any Stable Diffusion XL checkpoint with `from_pretrained`, `from_single_file` or `from_pipe`. Further ControlNets,
    LoRA, IP-Adapter, schedulers and offloading work as in the stock pipeline.

    The new face has pose, expression and place of the largest face in `image`; `pose_image=`, or `pose=`, `expression=` and
    `face_box=`, say otherwise. Where `image` shows none, it stands as in the reference photo.

    Example:

    ```py
    from facesnap_diffusers import FaceSnapXLImg2ImgPipeline

    pipe = FaceSnapXLImg2ImgPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    pipe.load_facesnap_adapter("owner/adapter")
    image = pipe("portrait as an astronaut", face_image="photo.jpg", image=start).images[0]
    ```
    """

    _plain_class = StableDiffusionXLImg2ImgPipeline
