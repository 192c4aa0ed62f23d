"""An adapter saved, and loaded from a folder and from a Hub."""

import pytest
import tiny
import torch
from huggingface_hub import ModelCard

from facesnap_diffusers import AdapterError, FaceIdentity, InputError
from facesnap_diffusers.adapter.config import PARTS


def image_of(pipe):
    return tiny.generate(pipe, identity=tiny.identity())


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
        pipe = tiny.new_pipeline()
        pipe.load_facesnap_adapter(adapter)
        assert torch.equal(image_of(pipe), image_of(trained))
        assert pipe.facesnap_config.replace(image_encoder_fingerprint=None) == trained.facesnap_config

    def test_half_precision_variant(self, tmp_path):
        pipe = tiny.new_pipeline()
        tiny.add_adapter(pipe)
        save_half(pipe, tmp_path / "adapter")
        assert (tmp_path / "adapter/mixer/diffusion_pytorch_model.fp16.safetensors").is_file()
        with pytest.raises(AdapterError, match="mixer could not be loaded"):
            tiny.new_pipeline().load_facesnap_adapter(tmp_path / "adapter")

        for dtype in (torch.float32, torch.float16):
            again = tiny.new_pipeline().to(dtype)
            again.load_facesnap_adapter(tmp_path / "adapter", variant="fp16")
            assert again.ffrnet.dtype == again.mixer.dtype == again.face_image_encoder.dtype == dtype
            if dtype == torch.float32:  # in half precision, calls on a CPU are slow
                assert torch.equal(image_of(again), image_of(pipe))
        again = tiny.new_pipeline()
        again.load_facesnap_adapter(tmp_path / "adapter", variant="fp16", dtype=torch.bfloat16)
        assert again.ffrnet.dtype == torch.bfloat16 and again.landmark_predictor.dtype == torch.float32
        image = image_of(again)  # on a base model in float32
        assert image.isfinite().all() and (image - image_of(pipe.to(torch.float32))).abs().max() < 0.05

    @pytest.mark.parametrize(
        "option", [{"faceid_plus_v2": True}, {"faceid_structure_scale": 2.0}, {"controlnet": "x"}]
    )
    def test_options_of_other_adapters_are_refused(self, adapter, option):
        with pytest.raises(AdapterError, match=f"{next(iter(option))}= is .*'s, and .* is a FaceSnap adapter"):
            tiny.new_pipeline().load_facesnap_adapter(adapter, **option)

    def test_without_accelerate_no_part_advises_to_install_it(self, adapter, monkeypatch):
        for module in ("models.modeling_utils", "utils.import_utils", "utils"):
            monkeypatch.setattr(f"diffusers.{module}.is_accelerate_available", lambda: False)
        for module in ("adapter.folder", "models.landmark_predictor"):
            monkeypatch.setattr(f"facesnap_diffusers.{module}.is_accelerate_available", lambda: False)
        lines = []
        monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", lambda *line: lines.append(line))
        pipe = tiny.new_pipeline()
        pipe.load_facesnap_adapter(adapter)
        assert pipe.mixer is not None and lines == []

    @pytest.mark.slow
    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_hub(self, variant, hub, tmp_path):
        """Through the real client: newest, pinned revision, then from the cache with the server gone."""
        expected, commits = [], []
        for seed in (2, 9):
            trained, folder = tiny.new_pipeline(), tmp_path / str(seed)
            tiny.add_adapter(trained, seed)
            save_half(trained, folder) if variant else trained.save_facesnap_adapter(folder)
            expected.append(image_of(trained))
            commits.append(hub.add_folder("someone/facesnap-tiny", folder))
        assert not torch.equal(*expected)

        arguments = {"cache_dir": str(tmp_path / "cache"), "variant": variant}
        pipe = tiny.new_pipeline()
        pipe.load_facesnap_adapter("someone/facesnap-tiny", **arguments)
        assert torch.equal(image_of(pipe), expected[1])
        pipe.load_facesnap_adapter("someone/facesnap-tiny", revision=commits[0], **arguments)
        assert torch.equal(image_of(pipe), expected[0])
        hub.requests.clear()
        pipe.load_facesnap_adapter("someone/facesnap-tiny", revision=commits[0], local_files_only=True, **arguments)
        assert torch.equal(image_of(pipe), expected[0]) and hub.requests == []

    def test_hub_subfolder_and_parts(self, adapter, hub, tmp_path):
        files = {
            f"sd15/{path.relative_to(adapter)}": path.read_bytes() for path in adapter.rglob("*") if path.is_file()
        }
        hub.add_commit("someone/many", files)
        pipe = tiny.new_pipeline()
        pipe.load_facesnap_adapter(
            "someone/many", subfolder="sd15", cache_dir=str(tmp_path / "cache"), parts=["mixer", "identity_attention"]
        )
        assert pipe.ffrnet is None and pipe.identity_attention is not None
        assert pipe.facesnap_config.parts == ["mixer", "identity_attention"]
        assert image_of(pipe).isfinite().all()

    def test_push_to_hub(self, trained, hub, tmp_path):
        trained.save_facesnap_adapter(
            tmp_path / "adapter", push_to_hub=True, repo_id="someone/pushed", token="hf_test", private=True
        )
        assert hub.private["someone/pushed"] is True and hub.authorizations == {"Bearer hf_test"}
        files = hub.files("someone/pushed", hub.resolve("someone/pushed", "main"))
        local = {
            path.relative_to(tmp_path / "adapter").as_posix(): path.read_bytes()
            for path in (tmp_path / "adapter").rglob("*")
            if path.is_file()
        }
        assert files == local
        pipe = tiny.new_pipeline()
        pipe.load_facesnap_adapter("someone/pushed", cache_dir=str(tmp_path / "cache"))
        assert torch.equal(image_of(pipe), image_of(trained))

    def test_model_card(self, trained, adapter, tmp_path):
        card = ModelCard.load(adapter / "README.md", ignore_metadata_errors=False)
        assert card.data.base_model == "someone/tiny" and card.data.base_model_relation == "adapter"
        assert card.data.pipeline_tag == "text-to-image" and card.data.license == "apache-2.0"
        assert "load_facesnap_adapter" in card.content and "{" not in card.text.replace("{}", "")
        (tmp_path / "README.md").write_text("my own words")
        trained.save_facesnap_adapter(tmp_path)
        assert (tmp_path / "README.md").read_text() == "my own words"

    def test_another_adapter_takes_the_place_of_the_first(self, adapter):
        pipe = tiny.new_pipeline()
        tiny.add_adapter(pipe, seed=7)
        pipe.set_facesnap_scale(identity_scale=0.2)
        pipe.load_facesnap_adapter(adapter)
        fresh = tiny.new_pipeline()
        fresh.load_facesnap_adapter(adapter)
        assert torch.equal(image_of(pipe), image_of(fresh))

    def test_home_folder(self, trained, adapter, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        trained.save_facesnap_adapter("~/mine")
        person = tiny.identity()
        person.save("~/me.safetensors")
        assert (tmp_path / "me.safetensors").is_file() and not (tmp_path / "~").exists()
        assert torch.equal(FaceIdentity.load("~/me.safetensors").face_embeds, person.face_embeds)
        pipe = tiny.new_pipeline()
        pipe.load_facesnap_adapter("~/mine")
        tiny.assert_same_image(tiny.generate(pipe, identity=person), tiny.generate(trained, identity=person), atol=0)

    def test_a_link_stays_a_link(self, trained, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "mine").symlink_to("disk")
        trained.save_facesnap_adapter(tmp_path / "mine")
        assert (tmp_path / "mine").is_symlink() and (tmp_path / "disk/facesnap_config.json").is_file()

    def test_the_current_folder_is_not_replaced(self, trained, tmp_path, monkeypatch):
        (tmp_path / "a/b").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "a/b")
        for folder in (".", ".."):
            with pytest.raises(InputError, match="is the current folder"):
                trained.save_facesnap_adapter(folder)
        trained.save_facesnap_adapter("mine")
        assert (tmp_path / "a/b/mine/facesnap_config.json").is_file()

    def test_while_offloaded(self, adapter):
        pipe = tiny.new_pipeline()
        pipe.enable_model_cpu_offload(device="cpu")
        pipe.load_facesnap_adapter(adapter)
        assert hasattr(pipe.ffrnet, "_hf_hook") and hasattr(pipe.unet, "_hf_hook")
        plain = tiny.new_pipeline()
        plain.load_facesnap_adapter(adapter)
        assert torch.equal(image_of(pipe), image_of(plain))
