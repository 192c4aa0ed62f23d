"""An adapter that cannot be loaded leaves the pipeline as it was."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from facesnap_diffusers import AdapterError, FaceSnapXLPipeline
from facesnap_diffusers.adapter.folder import ADAPTER_COMPONENTS


def image_of(pipe):
    return tiny.generate(pipe, identity=tiny.identity())


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
        pipe = tiny.new_pipeline()
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
        wider = tiny.new_pipeline()
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
            tiny.new_pipeline().load_facesnap_adapter(name, cache_dir=str(tmp_path), **arguments)

    def test_parts_that_it_does_not_have(self, sd_without_ffrnet):
        with pytest.raises(AdapterError, match=r"does not contain \['ffrnet'\]"):
            tiny.new_pipeline().load_facesnap_adapter(sd_without_ffrnet, parts=["mixer", "ffrnet"])

    @pytest.fixture
    def sd_without_ffrnet(self, tmp_path):
        pipe = tiny.new_pipeline()
        tiny.add_adapter(pipe, parts=["mixer", "identity_attention"])
        pipe.save_facesnap_adapter(tmp_path / "small")
        return tmp_path / "small"


class TestDefaultAdapter:
    def test_says_how_to_get_one_where_there_is_none(self, tmp_path, monkeypatch):
        pipe = tiny.new_pipeline()
        with pytest.raises(AdapterError, match="no public adapter for base models of family custom-32"):
            pipe.load_facesnap_adapter()
        monkeypatch.setattr("facesnap_diffusers.adapter.folder.family_of", lambda unet: "sd1")
        with pytest.raises(AdapterError, match="default adapter 'h94/IP-Adapter-FaceID'.*could not be loaded"):
            pipe.load_facesnap_adapter(cache_dir=str(tmp_path))
