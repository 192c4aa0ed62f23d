"""FaceSnap's Modular Diffusers blocks against FaceSnapXLPipeline."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import concurrent_calls
import PIL.Image
import pytest
import third_party
import tiny
import torch
from command_line import command
from diffusers import ControlNetModel, ModularPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoBlocks,
)
from skimage.data import astronaut

from facesnap_diffusers import FaceSnapXLImg2ImgPipeline, HeadPose, InputError, Person
from facesnap_diffusers.modular import (
    FaceSnapXLBlocks,
    FaceSnapXLCoreDenoiseStep,
    FaceSnapXLIdentityStep,
    load_facesnap_adapter,
)


pytestmark = pytest.mark.slow


CALL = {"num_inference_steps": 3, "output_type": "pt"}
SIZE = {"height": 64, "width": 64}
FACE = {"pose": HeadPose(yaw=20), "expression": "smile", "face_box": (0.2, 0.2, 0.8, 0.8)}
GUIDANCE = 7.5  # that of the stock blocks' guider


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.facesnap(tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    return pipe


@pytest.fixture(scope="module")
def adapter(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    pipe.save_facesnap_adapter(folder)
    return folder


def base_components(pipe):
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    return {name: pipe.components[name] for name in names}


def modular_pipeline(blocks, pipe, adapter=None):
    modular = blocks.init_pipeline()
    modular.update_components(**base_components(pipe))
    if adapter is not None:
        load_facesnap_adapter(modular, adapter)
    modular.set_progress_bar_config(disable=True)
    return modular


def test_same_image_as_the_pipeline(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    call = {"generator": tiny.seeded(), "identity": tiny.identity(), **FACE, **SIZE, **CALL}
    image = modular(prompt="a cat", output="images", **call)
    expected = pipe("a cat", guidance_scale=GUIDANCE, **{**call, "generator": tiny.seeded()}).images
    tiny.assert_same_image(image, expected, atol=1e-5)
    assert all("Identity" not in type(processor).__name__ for processor in pipe.unet.attn_processors.values())


def test_a_photo(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    call = {"face_image": PIL.Image.fromarray(astronaut()), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=tiny.seeded(), output="images", **call)
    expected = pipe("a cat", generator=tiny.seeded(), guidance_scale=GUIDANCE, **call).images
    tiny.assert_same_image(image, expected, atol=1e-5)


def test_saved_and_loaded_with_its_blocks(pipe, adapter, tmp_path):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    call = {"prompt": "a cat", "identity": tiny.identity(), "output": "images", **SIZE, **CALL}
    expected = modular(generator=tiny.seeded(), **call)
    modular.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    again = ModularPipeline.from_pretrained(tmp_path)
    again.load_components()
    again.set_progress_bar_config(disable=True)
    assert type(again.blocks) is FaceSnapXLBlocks
    assert torch.equal(again(generator=tiny.seeded(), **call), expected)


def test_a_further_controlnet_is_scaled_without_a_face(pipe, adapter):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    for parameter in controlnet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    stock, ours = (modular_pipeline(blocks, pipe) for blocks in (StableDiffusionXLAutoBlocks(), FaceSnapXLBlocks()))
    call = {"prompt": "a cat", "control_image": torch.rand(1, 3, 64, 64), "output": "images", **SIZE, **CALL}
    images = []
    for scale in (0.0, 0.5, 1.0):
        for modular in (stock, ours):
            modular.update_components(controlnet=controlnet)
            images.append(modular(generator=tiny.seeded(), controlnet_conditioning_scale=scale, **call))
        assert torch.equal(images[-1], images[-2])
    assert not torch.equal(images[-1], images[0])


def test_wrong_arguments_raise_typed_errors(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    for arguments, message in [
        ({"identity": [tiny.identity(), tiny.identity(4)]}, "2 faces for 1 prompts"),
        ({"pose": HeadPose(yaw=20)}, "pose= steers a face"),
        ({"identity": tiny.identity(), "pose": [HeadPose(), HeadPose(yaw=20)]}, "for 2 images, there are 1 prompts"),
        ({"identity": tiny.identity(), "face_index": 1}, "face_index= picks a face"),
        ({"face_index": 1}, "face_index= picks a face"),
        ({"people": [Person(tiny.identity(), (0, 0, 1, 1))]}, "people= goes with FaceSnapXLPipeline only"),
        ({"identity": tiny.identity(), "identity_scale": {"no_block": 1.0}}, "no attention layer begins with"),
        ({"identity": tiny.identity(), "control_image": torch.zeros(1, 3, 64, 64)}, "further ControlNets"),
    ]:
        with pytest.raises(InputError, match=message):
            modular(prompt="a cat", output="images", **arguments, **SIZE, **CALL)


def test_steering_without_ffrnet_is_refused(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe)
    load_facesnap_adapter(modular, adapter, parts=["mixer", "identity_attention"])
    for arguments in ({"pose": HeadPose(yaw=20)}, {"expression": "smile"}):
        with pytest.raises(InputError, match=f"{next(iter(arguments))}= has no effect"):
            modular(prompt="a cat", output="images", identity=tiny.identity(), **arguments, **SIZE, **CALL)


def test_torch_dtype_is_dtype_with_a_warning(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe)
    with pytest.warns(FutureWarning, match="torch_dtype"):
        load_facesnap_adapter(modular, adapter, torch_dtype=torch.float64)
    assert modular.mixer.dtype == torch.float64


def test_instantid(tmp_path):
    pipe = tiny.facesnap(tiny.xl_pipeline())
    torch.save(third_party.instantid(pipe.unet), tmp_path / "ip-adapter.bin")
    third_party.instantid_controlnet(pipe.unet).save_pretrained(tmp_path / "ControlNetModel")
    pipe.load_facesnap_adapter(tmp_path)
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, tmp_path)
    call = {"identity": third_party.instantid_person(), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=tiny.seeded(), output="images", **call)
    expected = pipe("a cat", generator=tiny.seeded(), guidance_scale=GUIDANCE, **call).images
    tiny.assert_same_image(image, expected, atol=1e-5)


def test_calls_from_threads_share_nothing(pipe, adapter):
    """Scheduler, guider, tokenizers: each call has its own, with another number of steps and another length of prompt."""
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    size = {"height": 32, "width": 32, "output_type": "pt"}
    faces = [{} if number == 2 else {"identity": tiny.identity(number)} for number in range(4)]

    def generate(number):
        call = {"prompt": "a cat " * (number + 1), "num_inference_steps": 1 + number, **faces[number], **size}
        return modular(generator=tiny.seeded(number), output="images", **call)

    expected = [generate(number) for number in range(4)]
    shared = [dict(vars(component)) for component in (modular.scheduler, modular.guider)]
    with concurrent_calls.switch_interval(1e-4), ThreadPoolExecutor(4) as pool:
        images = list(pool.map(generate, [0, 1, 2, 3, 3, 2, 1, 0]))
    assert all(torch.equal(*pair) for pair in zip(images, [*expected, *reversed(expected)], strict=True))
    assert [dict(vars(component)) for component in (modular.scheduler, modular.guider)] == shared


def test_scales(pipe, adapter):
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    for identity, landmarks in [(0.4, 0.6), (0.5, 0.0), (0.0, 0.7)]:
        image = modular(
            prompt="a cat",
            generator=tiny.seeded(),
            identity=tiny.identity(),
            identity_scale=identity,
            landmark_scale=landmarks,
            output="images",
            **SIZE,
            **CALL,
        )
        pipe.set_facesnap_scale(identity_scale=identity, landmark_scale=landmarks)
        expected = pipe(
            "a cat", generator=tiny.seeded(), identity=tiny.identity(), guidance_scale=GUIDANCE, **SIZE, **CALL
        ).images
        pipe.set_facesnap_scale(identity_scale=1.0, landmark_scale=1.0)
        tiny.assert_same_image(image, expected, atol=1e-5)


def test_plain_without_a_face(pipe, adapter):
    call = {"prompt": "a cat", "output": "images", **SIZE, **CALL}
    stock = modular_pipeline(StableDiffusionXLAutoBlocks(), pipe)
    ours = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    assert torch.equal(ours(generator=tiny.seeded(), **call), stock(generator=tiny.seeded(), **call))


def test_image_to_image(pipe, adapter):
    image2image = tiny.facesnap(pipe, FaceSnapXLImg2ImgPipeline)
    modular = modular_pipeline(FaceSnapXLBlocks(), pipe, adapter)
    start = torch.rand(1, 3, 32, 96, generator=tiny.seeded())  # its size is the image's
    call = {"image": start, "strength": 0.7, "identity": tiny.identity(), **CALL}
    image = modular(prompt="a cat", generator=tiny.seeded(), output="images", **call)
    expected = image2image("a cat", generator=tiny.seeded(), guidance_scale=GUIDANCE, **call).images
    tiny.assert_same_image(image, expected, atol=1e-5)


def test_blocks_insert_into_the_stock_ones(pipe, adapter):
    stock = StableDiffusionXLAutoBlocks().sub_blocks
    blocks = {}
    for name, block in stock.items():
        blocks[name] = FaceSnapXLCoreDenoiseStep() if name == "denoise" else block
        if name == "text_encoder":
            blocks["identity"] = FaceSnapXLIdentityStep()
    modular = modular_pipeline(SequentialPipelineBlocks.from_blocks_dict(blocks), pipe, adapter)
    call = {"identity": tiny.identity(), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=tiny.seeded(), output="images", **call)
    expected = pipe("a cat", generator=tiny.seeded(), guidance_scale=GUIDANCE, **call).images
    tiny.assert_same_image(image, expected, atol=1e-5)


@pytest.fixture(scope="module")
def packaged(pipe, tmp_path_factory):
    """An adapter for which `facesnap package-hub-repo` writes block.py, `diffusers-cli custom_blocks` the rest."""
    repo = tmp_path_factory.mktemp("repo")
    pipe.save_facesnap_adapter(repo)
    command("package-hub-repo", repo, "--repo-id", "someone/facesnap-xl")
    cli = Path(sys.executable).parent / "diffusers-cli"
    subprocess.run([cli, "custom_blocks"], cwd=repo, check=True, capture_output=True)
    return repo


@pytest.mark.parametrize("source", ["folder", "Hub"])
def test_packaged_by_diffusers_cli(pipe, packaged, source, hub, modules_cache, tmp_path):
    name, cache = str(packaged), {}
    if source == "Hub":
        name, cache = "someone/facesnap-xl", {"cache_dir": str(tmp_path / "cache")}
        hub.add_folder(name, packaged)
    modular = ModularPipeline.from_pretrained(name, trust_remote_code=True, **cache)
    assert type(modular.blocks).__name__ == "FaceSnapBlocks"
    modular.update_components(**base_components(pipe))
    load_facesnap_adapter(modular, name, **cache)
    modular.set_progress_bar_config(disable=True)
    call = {"identity": tiny.identity(), **SIZE, **CALL}
    image = modular(prompt="a cat", generator=tiny.seeded(), output="images", **call)
    expected = pipe("a cat", generator=tiny.seeded(), guidance_scale=GUIDANCE, **call).images
    tiny.assert_same_image(image, expected, atol=1e-5)
