"""Image-to-image on Stable Diffusion 1.x and 2.x."""

from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionImg2ImgPipeline

from .picture import PictureMixin
from .sd import FaceSnapSDMixin


class FaceSnapImg2ImgPipeline(PictureMixin, FaceSnapSDMixin, StableDiffusionControlNetImg2ImgPipeline):
    r"""
    Image-to-image with the identity of a person from one photo: a stock [`StableDiffusionControlNetImg2ImgPipeline`] to which
    [`~FaceSnapAdapterMixin.load_facesnap_adapter`] adds a FaceSnap adapter.

    Loads any Stable Diffusion 1.x or 2.x checkpoint with `from_pretrained`, `from_single_file` or `from_pipe`. Further ControlNets,
    LoRA, IP-Adapter, schedulers and offloading work as in the stock pipeline.

    The new face has pose, expression and place of the largest face in `image`; `pose_image=`, or `pose=`, `expression=` and
    `face_box=`, say otherwise. Where `image` shows none, it stands as in the reference photo.

    Example:

    ```py
    from facesnap_diffusers import FaceSnapImg2ImgPipeline

    pipe = FaceSnapImg2ImgPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    pipe.load_facesnap_adapter("owner/adapter")
    image = pipe("portrait as an astronaut", face_image="photo.jpg", image=start).images[0]
    ```
    """

    _plain_class = StableDiffusionImg2ImgPipeline
