"""FaceSnap's Modular Diffusers blocks against FaceSnapXLPipeline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import ModularPipeline, StableDiffusionXLImg2ImgPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoBlocks,
)

from facesnap_diffusers import FaceSnapXLImg2ImgPipeline, FaceSnapXLPipeline, HeadPose
from facesnap_diffusers.modular import (
    FaceSnapXLBlocks,
    FaceSnapXLCoreDenoiseStep,
    FaceSnapXLIdentityStep,
    load_facesnap_adapter,
)


CALL = {"num_inference_steps": 3, "output_type": "pt"}
SIZE = {"height": 64, "width": 64}
FACE = {"pose": HeadPose(yaw=20), "expression": "smile", "face_box": (0.2, 0.2, 0.8, 0.8)}
GUIDANCE = 7.5  # that of the stock blocks' guider


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def pipe():
    pipe = FaceSnapXLPipeline.from_pipe(tiny.xl_pipeline())
    pipe.set_progress_bar_config(disable=True)
    tiny.add_adapter(pipe)
    return pipe


@pytest.fixture(scope="module")
def adapter(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    pipe.save_facesnap_adapter(folder)
    return folder


def modular_pipeline(blocks, pipe, adapter=None):
    modular = blocks.init_pipeline()
    base = {
        name: pipe.components[name]
        for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    }
    modular.update_components(**base)
    if adapter is not None:
        load_facesnap_adapter(modular, adapter)
    modular.set_progress_bar_config(disable=True)
    return modular


def test_same_image_as_the_pipeline(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    call = {"generator": seeded(), "identity": tiny.identity(), **FACE, **SIZE, **CALL}
    image = modular(prompt="a cat", output="images", **call)
    expected = pipe("a cat", guidance_scale=GUIDANCE, **{**call, "generator": seeded()}).images
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
    assert all("Identity" not in type(processor).__name__ for processor in pipe.unet.attn_processors.values())


def test_scales(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    for identity, landmarks in [(0.4, 0.6), (0.5, 0.0), (0.0, 0.7)]:
        image = modular(
            prompt="a cat",
            generator=seeded(),
            identity=tiny.identity(),
            identity_scale=identity,
            landmarks_scale=landmarks,
            output="images",
            **SIZE,
            **CALL,
        )
        pipe.set_facesnap_scale(identity=identity, landmarks=landmarks)
        expected = pipe(
            "a cat", generator=seeded(), identity=tiny.identity(), guidance_scale=GUIDANCE, **SIZE, **CALL
        ).images
        pipe.set_facesnap_scale(identity=1.0, landmarks=1.0)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_plain_without_a_face(pipe, adapter):
    call = {"prompt": "a cat", "output": "images", **SIZE, **CALL}
    stock = modular_pipeline(StableDiffusionXLAutoBlocks(), pipe)
    ours = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    assert torch.equal(ours(generator=seeded(), **call), stock(generator=seeded(), **call))


def test_image_to_image(pipe, adapter):
    image2image = FaceSnapXLImg2ImgPipeline.from_pipe(pipe)
    image2image.set_progress_bar_config(disable=True)
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    start = torch.rand(1, 3, 64, 64, generator=seeded())
    call = {"image": start, "strength": 0.7, "identity": tiny.identity(), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=seeded(), output="images", **call)
    expected = image2image("a cat", generator=seeded(), guidance_scale=GUIDANCE, **call).images
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)
    plain = StableDiffusionXLImg2ImgPipeline.from_pipe(tiny.xl_pipeline())
    assert type(plain.unet) is type(modular.unet)


def test_blocks_insert_into_the_stock_ones(pipe, adapter):
    stock = StableDiffusionXLAutoBlocks().sub_blocks
    blocks = {}
    for name, block in stock.items():
        blocks[name] = FaceSnapXLCoreDenoiseStep() if name == "denoise" else block
        if name == "text_encoder":
            blocks["identity"] = FaceSnapXLIdentityStep()
    modular = modular_pipeline(SequentialPipelineBlocks.from_blocks_dict(blocks), pipe, adapter)
    call = {"identity": tiny.identity(), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=seeded(), output="images", **call)
    expected = pipe("a cat", generator=seeded(), guidance_scale=GUIDANCE, **call).images
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_packaged_by_diffusers_cli(pipe, adapter, tmp_path, monkeypatch):
    """`facesnap package-hub-repo` writes block.py, `diffusers-cli custom_blocks` makes it a repo to load from."""
    from test_interop_convert import command

    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    repo = tmp_path / "repo"
    pipe.save_facesnap_adapter(repo)
    command("package-hub-repo", repo, "--repo-id", "someone/facesnap-xl")
    cli = Path(sys.executable).parent / "diffusers-cli"
    done = subprocess.run(
        [cli, "custom_blocks", "--block_module_name", "block.py", "--block_class_name", "FaceSnapBlocks"],
        cwd=repo,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modular = ModularPipeline.from_pretrained(str(repo), trust_remote_code=True)
    assert type(modular.blocks).__name__ == "FaceSnapBlocks"
    modular.update_components(
        **{
            name: pipe.components[name]
            for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
        }
    )
    load_facesnap_adapter(modular, repo)
    modular.set_progress_bar_config(disable=True)
    call = {"identity": tiny.identity(), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=seeded(), output="images", **call)
    expected = pipe("a cat", generator=seeded(), guidance_scale=GUIDANCE, **call).images
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
