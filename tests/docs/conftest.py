"""The reader's working folder: photos, and tiny checkpoints under the names of the public ones."""

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from facesnap_diffusers import Face, nano_people
from facesnap_diffusers.faces import analyzers, photo
from facesnap_diffusers.interop.conversion import FACEID_PLUS_IMAGE_ENCODER


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


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Tiny checkpoints with random weights, in folders that are named as the public repositories."""
    root = tmp_path_factory.mktemp("checkpoints")
    xl, sd = tiny.xl_pipeline(), tiny.sd_pipeline()
    xl.save_pretrained(root / "stabilityai" / "stable-diffusion-xl-base-1.0")
    sd.save_pretrained(root / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    for name, checkpoint in {
        "InstantX/InstantID/ip-adapter.bin": third_party.instantid(xl.unet),
        "h94/IP-Adapter-FaceID/ip-adapter-faceid-plusv2_sd15.bin": third_party.faceid_plus(sd.unet),
        "h94/IP-Adapter-FaceID/ip-adapter-faceid_sd15.bin": third_party.faceid(sd.unet),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, root / name)
    plus_face = root / "h94" / "IP-Adapter" / "sdxl_models" / "ip-adapter-plus-face_sdxl_vit-h.safetensors"
    plus_face.parent.mkdir(parents=True)
    save_file(third_party.flat(third_party.plus_face(xl.unet)), plus_face)
    third_party.instantid_controlnet(xl.unet).save_pretrained(root / "InstantX" / "InstantID" / "ControlNetModel")
    encoder = root / FACEID_PLUS_IMAGE_ENCODER
    tiny.image_encoder().save_pretrained(encoder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(encoder)
    return root


@pytest.fixture
def working_folder(checkpoints, tmp_path, monkeypatch):
    """A folder of its own, with photos, and the checkpoints by their names."""
    for name in ("stabilityai", "stable-diffusion-v1-5", "InstantX", "h94", "laion"):
        (tmp_path / name).symlink_to(checkpoints / name)
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
