"""The reader's working folder with photos, and a Hub with tiny checkpoints under the names of the public ones."""

import os

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from diffusers import ControlNetModel
from hub_server import HubServer
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection

from facesnap_diffusers import Face, nano_people
from facesnap_diffusers.faces import analyzers, photo
from facesnap_diffusers.interop.conversion import FACEID_PLUS_IMAGE_ENCODER


HUB_PORT = int(os.environ["HF_ENDPOINT"].rpartition(":")[2])  # tests/conftest.py has chosen it
SIDE = 256
PHOTOS = {"me.jpg": 0, "me-too.jpg": 0, "you.jpg": 1, "other.jpg": 2}


class KnownFaces:
    """A face analyzer that knows where the face is in the photos of the working folder."""

    def __init__(self, encoder, embedding_dim, length):
        self.encoder, self.embedding_dim, self.length = encoder, embedding_dim, length
        self.landmarks = nano_people()[0].identity.landmarks[:68].numpy() * (SIDE / 128)

    def analyze(self, image):
        points = self.landmarks * (image.shape[0] / SIDE)
        embedding = np.resize(image.mean((0, 2)) - image.mean(), self.embedding_dim).astype(np.float32)
        box = np.array([*points[:, :2].min(0), *points[:, :2].max(0)], np.float32)
        embedding *= self.length / np.linalg.norm(embedding)
        return [Face(image, box, points.astype(np.float32), embedding, 1.0, self.encoder)]


def text_encoder(width: int, cls: type = CLIPTextModel):
    config = tiny.text_config(width)
    config.num_hidden_layers, config.intermediate_size = 1, 32
    return cls(config).eval()


def base_models():
    """Tiny bases whose contexts are as wide as those of the public ones, which tells their families."""
    sd, xl = tiny.sd_pipeline(), tiny.xl_pipeline()
    sd.register_modules(unet=wide(sd.unet, 768, sample_size=16), text_encoder=text_encoder(768))
    pooled = {"sample_size": 16, "projection_class_embeddings_input_dim": 1024 + 6 * 8}
    xl.register_modules(
        unet=wide(xl.unet, 2048, **pooled),
        text_encoder=text_encoder(1024),
        text_encoder_2=text_encoder(1024, CLIPTextModelWithProjection),
    )
    return sd, xl


def wide(unet, width: int, **changes):
    return type(unet).from_config({**unet.config, "cross_attention_dim": width, **changes}).eval()


def style_lora(sd, folder):
    sd.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_v"]))
    sd.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(sd.unet))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Tiny checkpoints with random weights, in folders that are named as the public repositories."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    sd, xl = base_models()
    xl.save_pretrained(root / "stabilityai" / "stable-diffusion-xl-base-1.0")
    sd.save_pretrained(root / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    for name, checkpoint in {
        "InstantX/InstantID/ip-adapter.bin": third_party.instantid(xl.unet),
        "h94/IP-Adapter-FaceID/ip-adapter-faceid-plusv2_sd15.bin": third_party.faceid_plus(sd.unet),
        "h94/IP-Adapter-FaceID/ip-adapter-faceid_sd15.bin": third_party.faceid(sd.unet),
        "h94/IP-Adapter-FaceID/ip-adapter-faceid-portrait_sd15.bin": third_party.portrait(sd.unet),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, root / name)
    for checkpoint, name in (
        (third_party.plus_face(sd.unet), "models/ip-adapter-plus-face_sd15.safetensors"),
        (third_party.plus_face(xl.unet), "sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors"),
    ):
        path = root / "h94" / "IP-Adapter" / name
        path.parent.mkdir(parents=True)
        save_file(third_party.flat(checkpoint), path)
    third_party.instantid_controlnet(xl.unet).save_pretrained(root / "InstantX" / "InstantID" / "ControlNetModel")
    depth = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(16, 32))
    depth.save_pretrained(root / "lllyasviel" / "control_v11f1p_sd15_depth")
    style_lora(sd, root / "someone" / "style-lora")
    encoder = root / FACEID_PLUS_IMAGE_ENCODER
    tiny.image_encoder().save_pretrained(encoder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(encoder)
    return root


@pytest.fixture(scope="module")
def public_hub(checkpoints, tmp_path_factory):
    """A Hub on the loopback interface that serves them, and the folder of what was downloaded from it."""
    hub = HubServer(tmp_path_factory.mktemp("hub"), HUB_PORT)
    for folder in checkpoints.glob("*/*"):
        hub.add_folder(folder.relative_to(checkpoints).as_posix(), folder)
    yield tmp_path_factory.mktemp("cache")
    hub.close()


@pytest.fixture
def working_folder(checkpoints, public_hub, tmp_path, monkeypatch):
    """A folder of its own, with photos and an adapter in a file; all else comes from the Hub by its name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(public_hub))
    (tmp_path / "somewhere").symlink_to(checkpoints / "h94" / "IP-Adapter-FaceID")
    people = nano_people()
    for name, number in PHOTOS.items():
        people[number].picture.resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS).save(tmp_path / name)
    for encoder in analyzers.MODEL_PACKS:
        for normalize in (True, False):
            monkeypatch.setitem(
                analyzers._shared, (encoder, normalize), KnownFaces(encoder, 512, 1 if normalize else 21)
            )
    for normalize in (True, False):
        monkeypatch.setitem(analyzers._shared, (tiny.FACE_ENCODER, normalize), KnownFaces(tiny.FACE_ENCODER, 128, 1.4))
    monkeypatch.setattr(photo, "_policy", photo.photo_policy())  # put back where a page sets its own
    monkeypatch.chdir(tmp_path)
    return tmp_path
