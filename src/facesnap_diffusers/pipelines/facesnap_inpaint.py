"""Inpainting on Stable Diffusion 1.x and 2.x."""

from diffusers import StableDiffusionControlNetInpaintPipeline, StableDiffusionInpaintPipeline

from .picture import InpaintMixin
from .sd import FaceSnapSDMixin


class FaceSnapInpaintPipeline(InpaintMixin, FaceSnapSDMixin, StableDiffusionControlNetInpaintPipeline):
    r"""
    Inpainting with the identity of a person from one photo: a stock [`StableDiffusionControlNetInpaintPipeline`] to which
    [`~FaceSnapAdapterMixin.load_facesnap_adapter`] adds a FaceSnap adapter.

    Loads any Stable Diffusion 1.x or 2.x checkpoint with `from_pretrained`, `from_single_file` or `from_pipe`. Further ControlNets,
    LoRA, IP-Adapter, schedulers and offloading work as in the stock pipeline.

    The new face has pose, expression and place of the face in `image` that the mask touches (of several, the one nearest
    to the mask's middle); `pose_image=`, or `pose=`, `expression=` and `face_box=`, say otherwise. Where there is none, it
    fills the box around the mask.

    Example:

    ```py
    from facesnap_diffusers import FaceSnapInpaintPipeline

    pipe = FaceSnapInpaintPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    pipe.load_facesnap_adapter("owner/adapter")
    image = pipe("portrait as an astronaut", face_image="photo.jpg", image=picture, mask_image=mask).images[0]
    ```
    """

    _plain_class = StableDiffusionInpaintPipeline
