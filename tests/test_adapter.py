"""The life of an adapter: fresh, saved, loaded from a folder and from a Hub, weighed, taken off."""

import json
import shutil

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from facesnap_diffusers import AdapterError, FaceSnapPipeline, FaceSnapXLPipeline
from facesnap_diffusers.adapter.config import PARTS
from facesnap_diffusers.adapter.folder import ADAPTER_COMPONENTS


STEPS = {"num_inference_steps": 2, "output_type": "pt", "height": tiny.SIZE, "width": tiny.SIZE}


def generate(pipe):
    return pipe("a cat", identity=tiny.identity(), generator=torch.Generator().manual_seed(0), **STEPS).images


def new_pipeline(seed=0):
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline(seed))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def trained():
    pipe = new_pipeline()
    tiny.add_adapter(pipe, base_model="someone/tiny", license="apache-2.0")
    return pipe


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    trained.save_facesnap_adapter(folder)
    return folder


@pytest.fixture
def copy(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "copy")
    return tmp_path / "copy"


def save_half(pipe, folder):
    """Saves the adapter in half precision, and leaves it with the values that were saved."""
    for name in ("mixer", "identity_attention", "ffrnet", "face_image_encoder"):
        getattr(pipe, name).half()
    pipe.save_facesnap_adapter(folder, variant="fp16")
    for name in ("mixer", "identity_attention", "ffrnet", "face_image_encoder"):
        getattr(pipe, name).float()


class TestSaveAndLoad:
    def test_folder(self, trained, adapter):
        assert {path.name for path in adapter.iterdir()} == {
            *PARTS,
            "image_encoder",
            "facesnap_config.json",
            "README.md",
        }
        assert not [path for path in adapter.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
        pipe = new_pipeline()
        pipe.load_facesnap_adapter(adapter)
        assert torch.equal(generate(pipe), generate(trained))
        assert pipe.facesnap_config == trained.facesnap_config

    def test_half_precision_variant(self, tmp_path):
        pipe = new_pipeline()
        tiny.add_adapter(pipe)
        save_half(pipe, tmp_path / "adapter")
        assert (tmp_path / "adapter/mixer/diffusion_pytorch_model.fp16.safetensors").is_file()
        with pytest.raises(AdapterError, match="mixer could not be loaded"):
            new_pipeline().load_facesnap_adapter(tmp_path / "adapter")

        for dtype in (torch.float32, torch.float16):
            again = new_pipeline().to(dtype)
            again.load_facesnap_adapter(tmp_path / "adapter", variant="fp16")
            assert again.ffrnet.dtype == again.mixer.dtype == again.face_image_encoder.dtype == dtype
            assert torch.equal(generate(again), generate(pipe.to(dtype)))
        again = new_pipeline()
        again.load_facesnap_adapter(tmp_path / "adapter", variant="fp16", dtype=torch.bfloat16)
        assert again.ffrnet.dtype == torch.bfloat16 and again.landmark_predictor.dtype == torch.float32

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_hub(self, variant, hub, tmp_path):
        """Through the real client: newest, pinned revision, then from the cache with the server gone."""
        expected, commits = [], []
        for seed in (2, 9):
            trained, folder = new_pipeline(), tmp_path / str(seed)
            tiny.add_adapter(trained, seed)
            save_half(trained, folder) if variant else trained.save_facesnap_adapter(folder)
            expected.append(generate(trained))
            commits.append(hub.add_folder("someone/facesnap-tiny", folder))
        assert not torch.equal(*expected)

        arguments = {"cache_dir": str(tmp_path / "cache"), "variant": variant}
        pipe = new_pipeline()
        pipe.load_facesnap_adapter("someone/facesnap-tiny", **arguments)
        assert torch.equal(generate(pipe), expected[1])
        pipe.load_facesnap_adapter("someone/facesnap-tiny", revision=commits[0], **arguments)
        assert torch.equal(generate(pipe), expected[0])
        hub.requests.clear()
        pipe.load_facesnap_adapter("someone/facesnap-tiny", revision=commits[0], local_files_only=True, **arguments)
        assert torch.equal(generate(pipe), expected[0]) and hub.requests == []

    def test_hub_subfolder_and_parts(self, adapter, hub, tmp_path):
        files = {
            f"sd15/{path.relative_to(adapter)}": path.read_bytes() for path in adapter.rglob("*") if path.is_file()
        }
        hub.add_commit("someone/many", files)
        pipe = new_pipeline()
        pipe.load_facesnap_adapter(
            "someone/many", subfolder="sd15", cache_dir=str(tmp_path / "cache"), parts=["mixer", "identity_attention"]
        )
        assert pipe.ffrnet is None and pipe.identity_attention is not None
        assert pipe.facesnap_config.parts == ["mixer", "identity_attention"]
        assert generate(pipe).isfinite().all()

    def test_push_to_hub(self, trained, hub, tmp_path):
        trained.save_facesnap_adapter(
            tmp_path / "adapter", push_to_hub=True, repo_id="someone/pushed", token="hf_test", private=True
        )
        files = hub.files("someone/pushed", hub.resolve("someone/pushed", "main"))
        local = {
            path.relative_to(tmp_path / "adapter").as_posix(): path.read_bytes()
            for path in (tmp_path / "adapter").rglob("*")
            if path.is_file()
        }
        assert files == local
        pipe = new_pipeline()
        pipe.load_facesnap_adapter("someone/pushed", cache_dir=str(tmp_path / "cache"))
        assert torch.equal(generate(pipe), generate(trained))

    def test_model_card(self, trained, adapter, tmp_path):
        card = ModelCard.load(adapter / "README.md", ignore_metadata_errors=False)
        assert card.data.base_model == "someone/tiny" and card.data.base_model_relation == "adapter"
        assert card.data.pipeline_tag == "text-to-image" and card.data.license == "apache-2.0"
        assert "load_facesnap_adapter" in card.content and "{" not in card.text.replace("{}", "")
        (tmp_path / "README.md").write_text("my own words")
        trained.save_facesnap_adapter(tmp_path)
        assert (tmp_path / "README.md").read_text() == "my own words"

    def test_another_adapter_takes_the_place_of_the_first(self, adapter):
        pipe = new_pipeline()
        tiny.add_adapter(pipe, seed=7)
        pipe.set_facesnap_scale(identity_scale=0.2)
        pipe.load_facesnap_adapter(adapter)
        fresh = new_pipeline()
        fresh.load_facesnap_adapter(adapter)
        assert torch.equal(generate(pipe), generate(fresh))

    def test_while_offloaded(self, adapter):
        pipe = new_pipeline()
        pipe.enable_model_cpu_offload(device="cpu")
        pipe.load_facesnap_adapter(adapter)
        assert hasattr(pipe.ffrnet, "_hf_hook") and hasattr(pipe.unet, "_hf_hook")
        plain = new_pipeline()
        plain.load_facesnap_adapter(adapter)
        assert torch.equal(generate(pipe), generate(plain))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def scribble(path):
    path.write_bytes(b"\x00\xff" * 4000)


def change_json(**values):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def change_tensors(change):
    def rewrite(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


def drop_one(tensors):
    tensors.pop(sorted(tensors)[0])


def add_one(tensors):
    tensors["unknown"] = torch.zeros(1)


def break_one(tensors):
    name = sorted(tensors)[0]
    tensors[name] = torch.full_like(tensors[name], torch.nan)


def reshape_one(tensors):
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(3, 3)


WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "facesnap_config.json"

#: file of the adapter, what happens to it, what the error says
DAMAGE = [
    (CONFIG, lambda path: path.unlink(), "no facesnap_config.json"),
    (CONFIG, scribble, "cannot be read"),
    (CONFIG, lambda path: path.write_text("[]"), "instead of names and values"),
    (CONFIG, change_json(format_version=2), "format_version 2"),
    (CONFIG, change_json(format_version=None), "format_version None"),
    (CONFIG, change_json(num_tokens="five"), "num_tokens is 'five'"),
    (CONFIG, change_json(surprise=1), "unknown key surprise"),
    (CONFIG, change_json(parts=["mixer", "motor"]), "unknown parts"),
    (CONFIG, change_json(parts=["mixer"]), "change no image"),
    (CONFIG, change_json(parts=["ffrnet"]), "add mixer"),
    (CONFIG, change_json(base_family="sdxl"), "family sdxl"),
    (CONFIG, change_json(num_tokens=7), "expected 7"),
    (CONFIG, change_json(face_embed_dim=512), "width 128"),
    (CONFIG, change_json(image_encoder_id=None), "image features of width 24"),
    (CONFIG, change_json(image_encoder_id="nobody/nothing"), "image encoder 'nobody/nothing'"),
    *[
        (f"{part}/{WEIGHTS}", damage, message)
        for part in ("mixer", "identity_attention", "ffrnet")
        for damage, message in [
            (lambda path: path.unlink(), "could not be loaded"),
            (cut, "could not be loaded"),
            (scribble, "could not be loaded"),
            (change_tensors(drop_one), "missing, unknown or misshapen"),
            (change_tensors(add_one), "missing, unknown or misshapen"),
            (change_tensors(reshape_one), "could not be loaded"),
            (change_tensors(break_one), "not finite"),
        ]
    ],
    ("mixer/config.json", lambda path: path.unlink(), "no config.json"),
    ("mixer/config.json", scribble, "could not be loaded"),
    ("mixer/config.json", change_json(cross_attention_dim=48), "could not be loaded"),
    ("image_encoder/model.safetensors", cut, "image encoder"),
]


class TestAllOrNothing:
    @pytest.mark.parametrize("loaded", [False, True], ids=["fresh", "loaded"])
    def test_damaged_adapters(self, copy, loaded, hub):
        pipe = new_pipeline()
        if loaded:
            tiny.add_adapter(pipe)
            pipe.set_facesnap_scale(identity_scale=0.5)
        components = dict(pipe.components)
        config, scale = dict(pipe.config), pipe.facesnap_scale
        pristine = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        for file, damage, message in DAMAGE:
            damage(copy / file)
            with pytest.raises(AdapterError, match=message) as raised:
                pipe.load_facesnap_adapter(copy)
            assert "\n" not in str(raised.value), file
            assert pipe.components == components and pipe.facesnap_scale == scale, file
            assert dict(pipe.config) == config, file
            for path, data in pristine.items():
                path.write_bytes(data)
        pipe.load_facesnap_adapter(copy)

    def test_another_base_model(self, adapter):
        pipe = FaceSnapXLPipeline.from_pipe(tiny.xl_pipeline())
        with pytest.raises(AdapterError, match="family custom-32, this one is of custom-xl-64"):
            pipe.load_facesnap_adapter(adapter)
        wider = new_pipeline()
        wider.register_modules(unet=tiny.sd_unet(block_out_channels=(32, 96), norm_num_groups=16))
        with pytest.raises(AdapterError, match="does not fit this UNet"):
            wider.load_facesnap_adapter(adapter)
        assert all(getattr(wider, name) is None for name in ADAPTER_COMPONENTS)

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("nobody/nothing", {}, "could not be loaded from the Hub"),
            ("no such folder/at/all", {}, "neither a folder nor"),
            ("nobody/nothing", {"local_files_only": True}, "could not be loaded from the Hub"),
        ],
    )
    def test_nowhere_to_be_found(self, name, arguments, message, tmp_path):
        with pytest.raises(AdapterError, match=message):
            new_pipeline().load_facesnap_adapter(name, cache_dir=str(tmp_path), **arguments)

    def test_parts_that_it_does_not_have(self, sd_without_ffrnet):
        with pytest.raises(AdapterError, match=r"does not contain \['ffrnet'\]"):
            new_pipeline().load_facesnap_adapter(sd_without_ffrnet, parts=["mixer", "ffrnet"])

    @pytest.fixture
    def sd_without_ffrnet(self, tmp_path):
        pipe = new_pipeline()
        tiny.add_adapter(pipe, parts=["mixer", "identity_attention"])
        pipe.save_facesnap_adapter(tmp_path / "small")
        return tmp_path / "small"


class TestDefaultAdapter:
    def test_says_how_to_get_one_where_there_is_none(self, tmp_path, monkeypatch):
        pipe = new_pipeline()
        with pytest.raises(AdapterError, match="no public adapter for base models of family custom-32"):
            pipe.load_facesnap_adapter()
        monkeypatch.setattr("facesnap_diffusers.adapter.folder.family_of", lambda unet: "sd1")
        with pytest.raises(AdapterError, match="default adapter 'h94/IP-Adapter-FaceID'.*could not be loaded"):
            pipe.load_facesnap_adapter(cache_dir=str(tmp_path))


class TestScale:
    def test_values_stay_until_changed(self, trained):
        pipe = FaceSnapPipeline.from_pipe(trained)
        pipe.set_facesnap_scale(identity_scale=0.5)
        pipe.set_facesnap_scale(landmark_scale=0.25)
        assert pipe.facesnap_scale == {"identity_scale": 0.5, "landmark_scale": 0.25}
        assert trained.facesnap_scale == {"identity_scale": 1.0, "landmark_scale": 1.0}

    def test_by_layer(self, trained):
        pipe = FaceSnapPipeline.from_pipe(trained)
        pipe.set_progress_bar_config(disable=True)
        everywhere = generate(pipe)
        pipe.set_facesnap_scale(identity_scale={"down_blocks": 1.0, "mid_block": 1.0, "up_blocks": 1.0})
        assert torch.equal(generate(pipe), everywhere)
        pipe.set_facesnap_scale(identity_scale={"mid_block": 1.0})
        assert not torch.equal(generate(pipe), everywhere)


def test_init_leaves_a_pipeline_that_generates_like_the_base():
    """Before training FFRNet adds nothing, so that at identity scale 0 the picture is the base model's."""
    pipe = new_pipeline()
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None), mixer={"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8}
    )
    pipe.set_facesnap_scale(identity_scale=0.0)
    plain = pipe("a cat", generator=torch.Generator().manual_seed(0), **STEPS).images
    face = pipe(
        "a cat",
        identity=tiny.identity(image_features=False),
        generator=torch.Generator().manual_seed(0),
        **STEPS,
    ).images
    torch.testing.assert_close(face, plain, atol=1e-5, rtol=0)
