"""Base models: outdated configs, families, the automatic class, what is shared between pipelines."""

import json
from inspect import signature
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
)
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from facesnap_diffusers import (
    AdapterError,
    AutoFaceSnapPipeline,
    FaceSnapImg2ImgPipeline,
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    FaceSnapXLImg2ImgPipeline,
    FaceSnapXLInpaintPipeline,
    FaceSnapXLPipeline,
    InputError,
)


pytestmark = pytest.mark.slow


def picture(value=100):
    return PIL.Image.new("RGB", (64, 64), (value, 255 - value, value // 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    tiny.sd_pipeline().save_pretrained(folder / "sd")
    tiny.xl_pipeline().save_pretrained(folder / "xl")
    return folder


@pytest.mark.parametrize(
    ("stock_cls", "cls", "arguments"),
    [
        (StableDiffusionPipeline, FaceSnapPipeline, {}),
        (StableDiffusionImg2ImgPipeline, FaceSnapImg2ImgPipeline, {"image": picture()}),
        (
            StableDiffusionInpaintPipeline,
            FaceSnapInpaintPipeline,
            {"image": picture(), "mask_image": PIL.Image.new("L", (64, 64), 255)},
        ),
    ],
)
@pytest.mark.parametrize(
    ("scheduler", "unet"),
    [({"steps_offset": 0}, {}), ({"clip_sample": True}, {}), ({}, {"_diffusers_version": "0.6.0", "sample_size": 32})],
    ids=["steps_offset", "clip_sample", "sample_size"],
)
def test_outdated_configs_are_corrected_as_in_the_stock_pipeline(
    stock_cls, cls, arguments, scheduler, unet, folders, tmp_path
):
    tiny.sd_pipeline().save_pretrained(tmp_path)
    for file, values in (("scheduler/scheduler_config.json", scheduler), ("unet/config.json", unet)):
        path = tmp_path / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    images, configs = [], []
    for pipeline_cls in (stock_cls, cls):
        pipe = tiny._quiet(pipeline_cls.from_pretrained(tmp_path, safety_checker=None))
        call = {"num_inference_steps": 2, "output_type": "pt", "generator": tiny.seeded()}
        images.append(pipe("a cat", **call, **arguments).images)
        configs.append((dict(pipe.scheduler.config), pipe.unet.config.sample_size))
    assert torch.equal(*images)
    # a call with a face runs on the same corrected components
    assert configs[0] == configs[1] and configs[0][1] == (64 if unet else 32)


class TestFamilies:
    @pytest.mark.parametrize(
        ("cls", "folder", "right"),
        [
            (FaceSnapPipeline, "xl", "FaceSnapXLPipeline"),
            (FaceSnapXLPipeline, "sd", "FaceSnapPipeline"),
            (FaceSnapInpaintPipeline, "xl", "FaceSnapXLInpaintPipeline"),
            (FaceSnapXLImg2ImgPipeline, "sd", "FaceSnapImg2ImgPipeline"),
        ],
    )
    def test_the_other_family_is_named(self, cls, folder, right, folders):
        stock = tiny.xl_pipeline() if folder == "xl" else tiny.sd_pipeline()
        for make in (lambda: cls.from_pretrained(folders / folder), lambda: cls.from_pipe(stock)):
            with pytest.raises(InputError, match=f"use {right}, or AutoFaceSnapPipeline") as error:
                make()
            assert "\n" not in str(error.value)

    def test_by_the_unet_alone(self):
        components = {**tiny.sd_pipeline().components, "unet": tiny.xl_unet()}
        with pytest.raises(InputError, match="unet is of Stable Diffusion XL"):
            FaceSnapPipeline(**components, requires_safety_checker=False)

    @pytest.mark.parametrize("class_name", ["StableDiffusion3Pipeline", "FluxPipeline"])
    @pytest.mark.parametrize("cls", [FaceSnapPipeline, FaceSnapXLPipeline, AutoFaceSnapPipeline])
    def test_other_models_are_not_supported(self, cls, class_name, tmp_path):
        index = {"_class_name": class_name, "_diffusers_version": "0.42.1", "transformer": ["diffusers", "T"]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=f"{class_name}, which is not supported"):
            cls.from_pretrained(tmp_path)

    @pytest.mark.parametrize("cls", [FaceSnapPipeline, FaceSnapXLPipeline, AutoFaceSnapPipeline])
    def test_damaged_index(self, cls, tmp_path):
        for index in ("[]", "3"):
            (tmp_path / "model_index.json").write_text(index)
            with pytest.raises(InputError, match=r"model_index.json of .* does not describe a pipeline"):
                cls.from_pretrained(tmp_path)

    @pytest.mark.parametrize("make", ["from_pretrained", "from_single_file"])
    @pytest.mark.parametrize("cls", [FaceSnapPipeline, FaceSnapXLPipeline, AutoFaceSnapPipeline])
    def test_a_checkpoint_that_is_not_there(self, cls, make, tmp_path):
        for name in ("nowhere/nothing", "./nothing", "nothing.safetensors", "~/no/such"):
            with pytest.raises(InputError, match="there is no checkpoint .* on disk, and the Hub gives none") as error:
                getattr(cls, make)(name, cache_dir=str(tmp_path))
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("make", ["from_pretrained", "from_single_file"])
    @pytest.mark.parametrize("cls", [FaceSnapPipeline, FaceSnapXLPipeline, AutoFaceSnapPipeline])
    def test_what_is_not_the_name_of_a_checkpoint(self, cls, make):
        for value in (None, 3, {}, "", ["a"]):
            with pytest.raises(InputError, match="the checkpoint must be a Hub repo, a folder or a file"):
                getattr(cls, make)(value)
        for value in (Path("/no/such"), "x" * 5000, "\0"):
            with pytest.raises(InputError, match="checkpoint .*(does not exist|cannot be a path|on disk)"):
                getattr(cls, make)(value)


class TestAuto:
    @pytest.mark.parametrize(
        ("folder", "task", "cls"),
        [
            ("sd", None, FaceSnapPipeline),
            ("sd", "image-to-image", FaceSnapImg2ImgPipeline),
            ("sd", "inpainting", FaceSnapInpaintPipeline),
            ("xl", None, FaceSnapXLPipeline),
            ("xl", "image-to-image", FaceSnapXLImg2ImgPipeline),
            ("xl", "inpainting", FaceSnapXLInpaintPipeline),
        ],
    )
    def test_class_of_base_and_task(self, folder, task, cls, folders):
        task = {} if task is None else {"task": task}
        pipe = AutoFaceSnapPipeline.from_pretrained(folders / folder, **task)
        assert type(pipe) is cls
        tiny.add_adapter(pipe)
        same = AutoFaceSnapPipeline.from_pipe(pipe, **task)
        assert type(same) is cls and same.mixer is pipe.mixer and same.unet is pipe.unet

    def test_unknown_task(self, folders):
        with pytest.raises(InputError, match="task must be one of text-to-image, image-to-image, inpainting"):
            AutoFaceSnapPipeline.from_pretrained(folders / "sd", task="video")
        with pytest.raises(InputError, match="did you mean 'inpainting'"):
            AutoFaceSnapPipeline.from_pretrained(folders / "sd", task="inpaint")

    def test_is_not_made_by_itself(self):
        with pytest.raises(TypeError, match="from_pretrained"):
            AutoFaceSnapPipeline()


@pytest.mark.parametrize("cls", [FaceSnapPipeline, FaceSnapXLInpaintPipeline])
def test_what_is_saved_loads_with_the_generic_class(cls, tmp_path):
    base = tiny.xl_pipeline() if "XL" in cls.__name__ else tiny.sd_pipeline()
    pipe = tiny.facesnap(base, cls)
    tiny.add_adapter(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is cls and loaded.facesnap_config == pipe.facesnap_config
    for name, parameter in pipe.ffrnet.state_dict().items():
        assert torch.equal(parameter, loaded.ffrnet.state_dict()[name]), name


def test_components_bring_the_adapter():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    other = tiny._quiet(FaceSnapImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    assert other.facesnap_config == pipe.facesnap_config
    call = {"identity": tiny.identity(), "image": picture(), "num_inference_steps": 2, "output_type": "pt"}
    expected = tiny._quiet(FaceSnapImg2ImgPipeline.from_pipe(pipe))("a cat", generator=tiny.seeded(), **call).images
    assert torch.equal(other("a cat", generator=tiny.seeded(), **call).images, expected)


def test_torch_dtype_is_dtype(tmp_path):
    stock = tiny.sd_pipeline()
    with pytest.warns(FutureWarning, match="torch_dtype"):
        pipe = FaceSnapPipeline.from_pipe(stock, torch_dtype=torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype= and torch_dtype= are both given"):
        FaceSnapPipeline.from_pipe(stock, torch_dtype=torch.float32, dtype=torch.float32)
    pipe = FaceSnapPipeline.from_pipe(stock, dtype=torch.float32)
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    with pytest.warns(FutureWarning, match="torch_dtype"):
        pipe.load_facesnap_adapter(tmp_path / "adapter", torch_dtype=torch.bfloat16)
    assert pipe.mixer.dtype == torch.bfloat16


class TestNewAdapter:
    def make(self, unet):
        stock = tiny.sd_pipeline()
        stock.unet = unet
        return FaceSnapPipeline.from_pipe(stock)

    def test_quantized(self):
        unet = tiny.sd_unet()
        unet.conv_in.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        with pytest.raises(AdapterError, match="unet is quantized"):
            tiny.add_adapter(self.make(unet))

    def test_with_lora(self):
        pytest.importorskip("peft")
        from peft import LoraConfig

        unet = tiny.sd_unet()
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(AdapterError, match="unet has LoRA layers"):
            tiny.add_adapter(self.make(unet))

    def test_distilled(self):
        with pytest.raises(AdapterError, match="distilled"):
            tiny.add_adapter(self.make(tiny.sd_unet(time_cond_proj_dim=8)))


def test_a_distilled_unet_with_a_face():
    """The loops of image-to-image and inpainting with ControlNets do not tell it the guidance scale."""
    trained = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(trained)
    stock = tiny.sd_pipeline()
    stock.unet = tiny.sd_unet(time_cond_proj_dim=8).eval()
    pipe = tiny._quiet(
        FaceSnapImg2ImgPipeline(**{**trained.components, "unet": stock.unet}, requires_safety_checker=False)
    )
    pipe._install_adapter(
        trained.facesnap_config,
        {
            n: getattr(trained, n)
            for n in (
                "mixer",
                "ffrnet",
                "landmark_predictor",
                "identity_attention",
                "face_image_encoder",
                "face_image_processor",
            )
        },
    )
    call = {"image": picture(), "num_inference_steps": 2, "output_type": "pt"}
    plain = tiny._quiet(StableDiffusionImg2ImgPipeline.from_pipe(stock))
    expected = plain("a cat", generator=tiny.seeded(), **call).images
    assert torch.equal(pipe("a cat", generator=tiny.seeded(), **call).images, expected)
    with pytest.raises(InputError, match="guidance scale as an input"):
        pipe("a cat", identity=tiny.identity(), **call)


def test_defaults_with_a_face_are_those_of_the_pipelines_with_controlnet():
    """What the documentation says differs."""
    for cls, twin, name, value in (
        (FaceSnapXLImg2ImgPipeline, StableDiffusionXLControlNetImg2ImgPipeline, "strength", 0.8),
        (FaceSnapXLInpaintPipeline, StableDiffusionXLControlNetInpaintPipeline, "guidance_scale", 5.0),
    ):
        assert signature(cls.__call__).parameters[name].default == value
        assert signature(twin.__call__).parameters[name].default == value


def controlnets(unet, count=2):
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32)).eval()
        for parameter in net.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        nets.append(net)
    return nets


class TestFurtherControlNets:
    @pytest.fixture(scope="class")
    def pipe(self):
        base = tiny.sd_pipeline()
        pipe = tiny._quiet(FaceSnapPipeline.from_pipe(base, controlnet=MultiControlNetModel(controlnets(base.unet))))
        tiny.add_adapter(pipe)
        return pipe

    @pytest.mark.parametrize("count", [2, 3])
    @pytest.mark.parametrize("face", [True, False])
    def test_a_list_of_images_for_each_prompt(self, pipe, count, face):
        who = {"identity": tiny.identity()} if face else {}
        images = [[picture(40 * i), picture(255 - 40 * i)] for i in range(count)]
        call = {"num_inference_steps": 1, "output_type": "pt", "height": 64, "width": 64, **who}

        def generator(i):
            return torch.Generator().manual_seed(i)

        together = pipe(["a cat"] * count, image=images, generator=[generator(i) for i in range(count)], **call).images
        for i in range(count):
            alone = pipe("a cat", image=images[i], generator=[generator(i)], **call).images[0]
            torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("end", [0.2, [0.2, 1.0]])
    def test_their_window_is_not_that_of_ffrnet(self, pipe, end):
        runs = []
        hook = pipe.ffrnet.register_forward_hook(lambda *_: runs.append(1))
        pipe(
            "a cat",
            identity=tiny.identity(),
            image=[picture(), picture()],
            num_inference_steps=5,
            control_guidance_end=end,
        )
        hook.remove()
        assert len(runs) == 5

    @pytest.mark.parametrize("face", [True, False])
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"image": None}, "an image for each of the 2"),
            ({"image": {}}, "an image for each of the 2"),
            ({"image": [picture()]}, "an image for each of the 2"),
            ({"image": [[picture()], [picture()]]}, "for each prompt, an image for each of the 2"),
            ({"image": [picture(), 5]}, "image must be a PIL image"),
            ({"image": [picture(), [picture()] * 3]}, "image has 3 pictures for 2 prompts; give one or 2"),
            ({"image": [picture(), torch.zeros(1, 5, 64, 64)]}, "image has 5 channels, this ControlNet takes 3"),
            ({"image": [picture(), np.zeros((2, 2))]}, "image has 1 channels, this ControlNet takes 3"),
            ({"image": [picture(), b"not a picture"]}, "holds no image"),
            ({"image": [picture()] * 2, "controlnet_conditioning_scale": [1, "x"]}, "must be a finite number"),
            ({"image": [picture()] * 2, "controlnet_conditioning_scale": [1.0]}, "or 2 for the 2 further ControlNets"),
            ({"image": [picture()] * 2, "control_guidance_end": 1.5}, "must be a finite number from 0 to 1"),
            ({"image": [picture()] * 2, "control_guidance_start": 1}, "start 1 is not before control_guidance_end 1"),
        ],
    )
    def test_wrong_arguments(self, pipe, face, arguments, message):
        who = {"identity": tiny.identity()} if face else {}
        with pytest.raises(InputError, match=message):
            pipe(["a cat"] * 2, num_inference_steps=1, **who, **arguments)

    def test_images_of_several_sizes_take_that_of_the_first(self, pipe):
        images = [np.zeros((48, 64, 3), np.float32), PIL.Image.new("RGB", (32, 32))]
        assert pipe("a cat", image=images, num_inference_steps=1, output_type="np").images.shape == (1, 48, 64, 3)

    @pytest.mark.parametrize("face", [True, False])
    def test_arrays_of_8_bits_are_pictures(self, pipe, face):
        who = {"identity": tiny.identity()} if face else {}
        pictures = [tiny.picture(0), tiny.picture(1)]
        call = {"num_inference_steps": 1, "output_type": "pt", **who}
        expected = pipe("a cat", image=pictures, generator=tiny.seeded(), **call).images
        arrays = [np.asarray(pictures[0]), torch.from_numpy(np.array(pictures[1])).permute(2, 0, 1)]
        assert torch.equal(pipe("a cat", image=arrays, generator=tiny.seeded(), **call).images, expected)

    @pytest.mark.parametrize("cls", [FaceSnapImg2ImgPipeline, FaceSnapInpaintPipeline])
    @pytest.mark.parametrize("face", [True, False])
    def test_images_of_another_size_than_the_picture(self, cls, face):
        base = tiny.sd_pipeline()
        pipe = tiny._quiet(cls.from_pipe(base, controlnet=controlnets(base.unet, 1)[0]))
        tiny.add_adapter(pipe)
        who = {"identity": tiny.identity()} if face else {}
        mask = {"mask_image": tiny.mask()} if cls is FaceSnapInpaintPipeline else {}
        control = picture(80).resize((48, 40))
        call = {"image": picture(), "control_image": control, "num_inference_steps": 2, "output_type": "pt"}
        assert pipe("a cat", **call, **mask, **who).images.shape == (1, 3, 64, 64)

    @pytest.mark.parametrize("count", [1, 2])
    def test_of_another_dtype_than_the_base(self, count):
        base = tiny.sd_pipeline()
        nets = controlnets(base.unet, count)
        pipe = tiny._quiet(FaceSnapPipeline.from_pipe(base, controlnet=nets if count > 1 else nets[0]))
        call = {"image": [picture(), picture(80)][:count] if count > 1 else picture(), "num_inference_steps": 1}
        expected = pipe("a cat", generator=tiny.seeded(), output_type="pt", **call).images
        pipe.controlnet.to(torch.bfloat16)
        image = pipe("a cat", generator=tiny.seeded(), output_type="pt", **call).images
        assert 0 < (image - expected).abs().max() < 0.05

    def test_of_one_channel(self):
        base = tiny.sd_pipeline()
        net = ControlNetModel.from_unet(
            base.unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32)
        )
        pipe = tiny._quiet(FaceSnapPipeline.from_pipe(base, controlnet=net))
        image = torch.rand(1, 1, 32, 32)
        assert pipe("a cat", image=image, num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)
        with pytest.raises(InputError, match="image has 3 channels, this ControlNet takes 1"):
            pipe("a cat", image=picture(), num_inference_steps=1)

    @pytest.mark.parametrize("face", [True, False])
    def test_scales_that_are_not_given_are_the_stock_ones(self, face):
        base = tiny.sd_pipeline()
        (net,) = controlnets(base.unet, 1)
        pipe = tiny._quiet(FaceSnapImg2ImgPipeline.from_pipe(base, controlnet=net))
        tiny.add_adapter(pipe)
        who = {"identity": tiny.identity()} if face else {}
        call = {"image": picture(), "control_image": picture(80), "num_inference_steps": 2, "output_type": "pt", **who}
        arguments = signature(StableDiffusionControlNetImg2ImgPipeline.__call__).parameters
        default = arguments["controlnet_conditioning_scale"].default
        without = pipe("a cat", generator=tiny.seeded(), **call).images
        given = pipe("a cat", generator=tiny.seeded(), controlnet_conditioning_scale=default, **call).images
        assert default != 1 and torch.equal(without, given)

    def test_union_controlnets_are_refused(self):
        xl = tiny.xl_pipeline()
        union = ControlNetUnionModel.from_unet(xl.unet, conditioning_embedding_out_channels=(16, 32))
        for controlnet in (union, [union]):
            with pytest.raises(InputError, match="controlnet must be a ControlNetModel .* got ControlNetUnionModel"):
                FaceSnapXLPipeline.from_pipe(xl, controlnet=controlnet)


def test_lists_of_one_serve_a_batch_of_faces():
    pipe = tiny.facesnap(tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    call = {"identity": [tiny.identity(), tiny.identity(4)], "num_inference_steps": 1, "output_type": "pt"}
    text = pipe("a", negative_prompt="x", prompt_2="y", generator=tiny.seeded(), **call).images
    lists = pipe(["a"], negative_prompt=["x"], prompt_2=["y"], generator=tiny.seeded(), **call).images
    assert torch.equal(text, lists)


def test_faces_are_encoded_in_full_precision_under_autocast():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    arguments = {"embedding": tiny.identity().face_embeds, "landmarks": tiny.face_points()}
    photo = PIL.Image.new("RGB", (120, 100))
    expected = pipe.encode_face(photo, **arguments)
    points = pipe.predict_landmarks(tiny.identity(), height=64, width=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        face = pipe.encode_face(photo, **arguments)
        assert torch.equal(face.shape, expected.shape)
        assert torch.equal(face.image_hidden_states, expected.image_hidden_states)
        assert torch.equal(pipe.predict_landmarks(tiny.identity(), height=64, width=64), points)


def test_a_callback_sees_a_pipeline_and_the_properties_stay():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)

    def callback(pipeline, step, timestep, tensors):
        assert pipeline.unet is pipe.unet and pipeline.vae is pipe.vae and pipeline.do_classifier_free_guidance
        assert pipeline.num_timesteps == 3
        pipeline._guidance_scale += 1
        return tensors

    for who in ({}, {"identity": tiny.identity()}):
        pipe("a cat", guidance_scale=5.0, num_inference_steps=3, callback_on_step_end=callback, **who)
        assert pipe.guidance_scale == 8 and pipe.num_timesteps == 3


def test_a_call_within_a_callback_is_one_of_the_pipeline_itself():
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    alone = [tiny.generate(pipe), tiny.generate(pipe, identity=tiny.identity(4))]
    within = []

    def callback(pipeline, step, timestep, tensors):
        within.append([tiny.generate(pipeline), tiny.generate(pipeline, identity=tiny.identity(4))])
        return tensors

    expected = tiny.generate(pipe, identity=tiny.identity())
    assert torch.equal(tiny.generate(pipe, identity=tiny.identity(), callback_on_step_end=callback), expected)
    assert len(within) == 2 and all(torch.equal(a, b) for images in within for a, b in zip(images, alone))
