"""Tiny real components: the classes of Stable Diffusion with few channels and random weights."""

import numpy as np
import PIL.Image
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from facesnap_diffusers import FaceIdentity, FaceSnapConfig, FaceSnapPipeline, FaceSnapXLPipeline


FACE_ENCODER = "dlib/face_recognition_resnet_model_v1"
FACE_EMBED_DIM = 128
SIZE = 64

#: A call that is as short as a test can do with.
CALL = {"num_inference_steps": 2, "output_type": "pt", "height": SIZE, "width": SIZE}


def tokenizer() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
    )


def vae(channels: tuple[int, ...] = (32, 64)) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=4,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def sd_unet(**changes) -> UNet2DConditionModel:
    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**sizes, **changes})


def xl_unet() -> UNet2DConditionModel:
    return sd_unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=32 + 6 * 8,
        cross_attention_dim=64,
    )


def sd_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    return _quiet(
        StableDiffusionPipeline(
            vae=vae().eval(),
            text_encoder=CLIPTextModel(text_config(32)).eval(),
            tokenizer=tokenizer(),
            unet=sd_unet().eval(),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def xl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    return _quiet(
        StableDiffusionXLPipeline(
            vae=vae().eval(),
            text_encoder=CLIPTextModel(text_config(32)).eval(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(32)).eval(),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=xl_unet().eval(),
            scheduler=scheduler(),
            add_watermarker=False,
        )
    )


def facesnap(base, cls=None):
    """A FaceSnap pipeline on the components of a stock one."""
    cls = cls or (FaceSnapXLPipeline if hasattr(base, "text_encoder_2") else FaceSnapPipeline)
    return _quiet(cls.from_pipe(base))


def new_pipeline(seed: int = 0) -> FaceSnapPipeline:
    """A FaceSnap pipeline of its own, without an adapter."""
    return facesnap(sd_pipeline(seed))


def with_adapter(base, cls=None):
    """A FaceSnap pipeline on the components of a stock one, with a random adapter that changes the image."""
    pipe = facesnap(base, cls)
    add_adapter(pipe)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(pipe, prompt="a cat", **kwargs):
    """The images of a short call from seed 0: by default `(batch, 3, 64, 64)` in [0, 1]."""
    return pipe(prompt, generator=seeded(), **{**CALL, **kwargs}).images


def picture(seed: int = 0) -> PIL.Image.Image:
    """Noise, to start from or as the image of a further ControlNet."""
    pixels = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def mask() -> PIL.Image.Image:
    """White in the middle: what inpainting draws anew."""
    pixels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    pixels[16:48, 16:48] = 255
    return PIL.Image.fromarray(pixels)


def assert_same_image(image: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    """Says how far apart two images are (`pytest -rP` shows it), and that it is not too far."""
    print(f"largest difference {(image - expected).abs().max():.1e}, allowed {atol:.0e}")
    torch.testing.assert_close(image, expected, atol=atol, rtol=0)


def image_encoder(seed: int = 1) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            projection_dim=16,
        )
    ).eval()


def adapter_config(**changes) -> FaceSnapConfig:
    values = {
        "face_encoder_id": FACE_ENCODER,
        "face_embed_dim": FACE_EMBED_DIM,
        "image_encoder_id": "image_encoder",
        "num_tokens": 5,
    }
    return FaceSnapConfig(**{**values, **changes})


def add_adapter(pipe, seed: int = 2, **changes) -> None:
    """Puts an adapter with random weights onto `pipe`: FFRNet's zero layers too, so that it changes the image."""
    torch.manual_seed(seed)
    config = adapter_config(**changes)
    encoder = image_encoder() if config.image_encoder_id else None
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe.init_facesnap_adapter(
        config,
        mixer={"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8},
        image_encoder=encoder,
        image_processor=processor,
    )
    torch.manual_seed(seed)
    for part in (pipe.ffrnet, pipe.identity_attention):
        for parameter in part.parameters() if part is not None else ():
            parameter.data.add_(0.1 * torch.randn_like(parameter))


def write_nano(folder) -> None:
    """A nano model as `base/` and `adapter/`: the nano autoencoder with few channels, stock tiny parts around it."""
    from facesnap_diffusers import FaceSnapPipeline
    from facesnap_diffusers.nano.autoencoder import AutoencoderPatch

    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderPatch(decoder_channels=(16, 16, 16), decoder_blocks=(1, 1, 1)),
        text_encoder=CLIPTextModel(text_config(32)),
        tokenizer=tokenizer(),
        unet=sd_unet(in_channels=16, out_channels=16, sample_size=16),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "base")
    pipe = FaceSnapPipeline.from_pipe(pipe)
    add_adapter(pipe)
    pipe.save_facesnap_adapter(folder / "adapter")


def identity(seed: int = 3, landmarks: bool = True, image_features: bool = True) -> FaceIdentity:
    """A made-up person: what `encode_face` gives for a photo of 100×120 pixels."""
    generator = torch.Generator().manual_seed(seed)
    return FaceIdentity(
        face_embeds=0.1 * torch.randn(FACE_EMBED_DIM, generator=generator),
        face_encoder_id=FACE_ENCODER,
        landmarks=face_points() if landmarks else None,
        photo_size=(100, 120) if landmarks else None,
        image_hidden_states=torch.randn(5, 24, generator=generator) if image_features else None,
        image_encoder_id="image_encoder" if image_features else None,
    )


def face_points() -> torch.Tensor:
    """The mean face as 68 points, looking at the camera from the middle of a photo of 100×120 pixels."""
    from facesnap_diffusers import load_landmark_predictor

    mean = load_landmark_predictor().mean[:68, :2]
    return mean * torch.tensor([1.0, -1.0]) * 3.0 + torch.tensor([60.0, 50.0])


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
