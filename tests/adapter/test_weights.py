"""Files of an adapter: read strictly, written whole or not at all."""

import dataclasses
import json
import re
import shutil
import time

import input_counts
import PIL.Image
import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from facesnap_diffusers import AdapterError, FaceEncoderMismatchError, FaceSnapPipeline, InputError
from facesnap_diffusers.adapter import folder as adapter_folder
from facesnap_diffusers.adapter.config import CONFIG_NAME
from facesnap_diffusers.adapter.model_card import write_model_card
from facesnap_diffusers.adapter.weights import check_files, fingerprint
from facesnap_diffusers.models.mixer import FacialAttributeMixer


pytestmark = pytest.mark.slow


def make(seed=None, **changes):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    if seed is not None:
        tiny.add_adapter(pipe, seed=seed, **changes)
    return pipe


@pytest.fixture(scope="module")
def trained():
    return make(seed=2)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained.save_facesnap_adapter(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def empty():
    return make()


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestImageEncoder:
    FILE = "image_encoder/model.safetensors"

    def test_tensors_are_missing_or_nan(self, copy, empty):
        tensors = load_file(copy / self.FILE)
        for name in sorted(tensors)[:: 1 if input_counts.ALL else 6]:
            for change in (
                {key: value for key, value in tensors.items() if key != name},
                {**tensors, name: torch.full_like(tensors[name], torch.nan)},
            ):
                save_file(change, copy / self.FILE, {"format": "pt"})
                with pytest.raises(AdapterError, match="image encoder|image_encoder"):
                    empty.load_facesnap_adapter(copy)
        assert empty.mixer is None

    @pytest.mark.parametrize("change", ["none", "unknown", "shape"])
    def test_other_tensors(self, change, copy, empty):
        tensors = load_file(copy / self.FILE)
        first = sorted(tensors)[0]
        changed = {
            "none": {},
            "unknown": {**tensors, "surprise": torch.zeros(1)},
            "shape": {**tensors, first: torch.zeros(3, 3)},
        }[change]
        save_file(changed, copy / self.FILE, {"format": "pt"})
        with pytest.raises(AdapterError, match="image.encoder"):
            empty.load_facesnap_adapter(copy)

    def test_no_pickles(self, copy, empty):
        tensors = load_file(copy / self.FILE)
        (copy / self.FILE).unlink()
        torch.save(tensors, copy / "image_encoder/pytorch_model.bin")
        with pytest.raises(AdapterError, match="there is no file model.safetensors"):
            empty.load_facesnap_adapter(copy)

    def test_a_config_cannot_name_an_attention_kernel(self, copy):
        path = copy / "image_encoder/config.json"
        values = json.loads(path.read_text())
        for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            path.write_text(json.dumps({**values, name: "kernels-community/flash-attn"}))
            pipe = make()
            pipe.load_facesnap_adapter(copy)
            assert pipe.face_image_encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("part", "stem"), [("image_encoder", "model"), ("mixer", "diffusion_pytorch_model")], ids=["encoder", "mixer"]
)
class TestShards:
    def split(self, folder, stem, names):
        file = folder / f"{stem}.safetensors"
        tensors = load_file(file)
        file.unlink()
        keys = sorted(tensors)
        groups = [keys[::2], keys[1::2]]
        for group, name in zip(groups, names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            save_file({key: tensors[key] for key in group}, folder / name, {"format": "pt"})
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {key: name for group, name in zip(groups, names) for key in group},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))

    def test_in_the_folder(self, part, stem, copy, trained):
        self.split(copy / part, stem, [f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"])
        pipe = make()
        pipe.load_facesnap_adapter(copy)
        name = "face_image_encoder" if part == "image_encoder" else part
        for key, tensor in getattr(trained, name).state_dict().items():
            assert torch.equal(tensor, getattr(pipe, name).state_dict()[key])

    @pytest.mark.parametrize("outside", ["../../outside.safetensors", "sub/inside.safetensors"])
    def test_not_outside_of_it(self, part, stem, outside, copy, empty):
        self.split(copy / part, stem, [f"{stem}-00001-of-00002.safetensors", outside])
        with pytest.raises(AdapterError, match="is not a file of its folder"):
            empty.load_facesnap_adapter(copy)

    def test_missing(self, part, stem, copy, empty):
        self.split(copy / part, stem, [f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"])
        (copy / part / f"{stem}-00002-of-00002.safetensors").unlink()
        with pytest.raises(AdapterError, match="there is no file"):
            empty.load_facesnap_adapter(copy)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("mixer/config.json", "num_tokens", 10**9),
        ("mixer/config.json", "num_tokens", 900_000),
        ("mixer/config.json", "num_layers", 10**9),
        ("mixer/config.json", "num_layers", 500),
        ("mixer/config.json", "hidden_size", 2**62),
        ("ffrnet/config.json", "block_out_channels", [10**6, 10**6]),
        ("ffrnet/config.json", "layers_per_block", 10**7),
        ("image_encoder/config.json", "hidden_size", 999_999),
        ("image_encoder/config.json", "num_hidden_layers", 10**8),
        ("image_encoder/config.json", "image_size", 10**6),
    ],
)
def test_sizes_are_checked_before_anything_is_built(file, name, value, copy, empty, monkeypatch):
    built = []
    build = FacialAttributeMixer.from_pretrained
    monkeypatch.setattr(
        FacialAttributeMixer, "from_pretrained", lambda *args, **kwargs: built.append(1) or build(*args, **kwargs)
    )
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    begin = time.monotonic()
    with pytest.raises(AdapterError, match=name + "=|asks for|wrong values|image encoder"):
        empty.load_facesnap_adapter(copy)
    assert time.monotonic() - begin < 30
    assert not built or not file.startswith("mixer")


class TestHub:
    """What says which version of the adapter is wanted is not said to the image encoder's repo."""

    @pytest.mark.parametrize("where", [{}, {"variant": "fp16"}, {"subfolder": "adapters/one"}])
    def test_revision_and_force_download(self, where, trained, hub, tmp_path):
        repo, encoder_repo = "owner/pinned", "owner/clip"
        pipe = make(seed=2)
        config = pipe.facesnap_config.replace(image_encoder_id=encoder_repo)
        pipe.register_to_config(facesnap_config=vars(config))
        folder = tmp_path / "adapter" / where.get("subfolder", "")
        if "variant" in where:
            for part in ("mixer", "identity_attention", "ffrnet", "landmark_predictor"):
                getattr(pipe, part).save_pretrained(folder / part, variant="fp16")
            config.save(folder)
        else:
            pipe.save_facesnap_adapter(folder)
        commit = hub.add_folder(repo, tmp_path / "adapter")
        trained.face_image_encoder.save_pretrained(tmp_path / "clip")
        hub.add_folder(encoder_repo, tmp_path / "clip")
        loaded = make()
        cache = str(tmp_path / "cache")
        loaded.load_facesnap_adapter(repo, revision=commit, force_download=True, cache_dir=cache, **where)
        assert loaded.facesnap_config == config

        # of the commit, though there is a newer one, and again, though it lies in the cache
        hub.add_commit(repo, {f"{where.get('subfolder', '.')}/{CONFIG_NAME}".removeprefix("./"): b"{}"})
        hub.requests.clear()
        loaded.load_facesnap_adapter(repo, revision=commit, force_download=True, cache_dir=cache, **where)
        assert any(line.startswith(f"GET /{repo}/resolve/{commit}/") for line in hub.requests)
        assert not any(line.startswith("GET /owner/clip/") and line.endswith("safetensors") for line in hub.requests)
        for name, tensor in trained.face_image_encoder.state_dict().items():
            assert torch.equal(tensor, loaded.face_image_encoder.state_dict()[name])


class TestSaving:
    @pytest.mark.parametrize("when", ["ffrnet", "face_image_encoder", "mixer", "config", "card"])
    @pytest.mark.parametrize(
        "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")], ids=["os", "st"]
    )
    def test_a_full_disk_leaves_the_old_adapter(self, when, error, copy, monkeypatch):
        pipe = make(seed=9)
        before = files_of(copy)

        def full(*args, **kwargs):
            raise error

        if when == "config":
            monkeypatch.setattr("facesnap_diffusers.adapter.config.FaceSnapConfig.save", full)
        elif when == "card":
            (copy / "README.md").unlink()
            before.pop("README.md")
            monkeypatch.setattr(adapter_folder, "write_model_card", full)
        else:
            monkeypatch.setattr(getattr(pipe, when), "save_pretrained", full)
        with pytest.raises(AdapterError, match="could not be saved .*No space left on device.* as it was"):
            pipe.save_facesnap_adapter(copy)
        assert files_of(copy) == before
        assert [path.name for path in copy.parent.iterdir()] == ["copy"]

    def test_card_variants_and_other_files_are_kept(self, copy):
        (copy / "README.md").write_text("my card\n")
        (copy / "notes").mkdir()
        (copy / "notes/mine.txt").write_text("mine")
        before = files_of(copy)
        pipe = make(seed=9)
        pipe.save_facesnap_adapter(copy, variant="other")
        after = files_of(copy)
        for name, content in before.items():
            if not name.endswith("config.json"):
                assert after[name] == content, name
        assert "mixer/diffusion_pytorch_model.other.safetensors" in after

        pipe.save_facesnap_adapter(copy)
        assert files_of(copy)["README.md"] == b"my card\n"
        loaded = make()
        loaded.load_facesnap_adapter(copy)
        for name, tensor in pipe.ffrnet.state_dict().items():
            assert torch.equal(tensor, loaded.ffrnet.state_dict()[name])

    def test_into_the_current_folder(self, tmp_path, monkeypatch, trained):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        trained.save_facesnap_adapter("new/adapter")
        assert (tmp_path / "here/new/adapter/facesnap_config.json").is_file()

    def test_a_file_in_the_way(self, tmp_path, trained):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be made"):
            trained.save_facesnap_adapter(tmp_path / "file")
        with pytest.raises(InputError, match="cannot be made"):
            trained.save_facesnap_adapter(tmp_path / "file" / "adapter")

    def test_no_local_paths(self, copy, tmp_path):
        """Of where parts came from, where the image encoder lies, or the base model."""
        pipe = make()
        pipe.load_facesnap_adapter(copy)
        encoder = tmp_path / "my/clip"
        pipe.face_image_encoder.save_pretrained(encoder)
        config = pipe.facesnap_config.replace(base_model=str(tmp_path), image_encoder_id=str(encoder))
        pipe.register_to_config(facesnap_config=vars(config))
        pipe.save_facesnap_adapter(tmp_path / "saved")
        for path in (tmp_path / "saved").rglob("*"):
            if path.suffix in (".json", ".md"):
                assert str(tmp_path) not in path.read_text(), path
        loaded = make()
        loaded.load_facesnap_adapter(tmp_path / "saved")
        assert loaded.facesnap_config.image_encoder_id == "image_encoder"


class TestPeopleOfAnotherImageEncoder:
    """Folders call their image encoders alike; what one encoded is refused where another was trained with."""

    @pytest.fixture
    def person(self, saved):
        pipe = make()
        pipe.load_facesnap_adapter(saved)
        points = tiny.face_points()
        embedding = tiny.identity().face_embeds
        return pipe.encode_face(PIL.Image.new("RGB", (120, 100)), embedding=embedding, landmarks=points)

    def test_refused(self, person, trained, tmp_path):
        pipe = make(seed=2)
        with torch.no_grad():
            pipe.face_image_encoder.vision_model.embeddings.class_embedding[3].neg_()
        tiny.generate(pipe, identity=person)  # a pipeline that was never saved does not say which
        pipe.save_facesnap_adapter(tmp_path / "other")
        other = make()
        other.load_facesnap_adapter(tmp_path / "other")
        with pytest.raises(FaceEncoderMismatchError, match="image features of image_encoder@.*encode the face again"):
            tiny.generate(other, identity=person)
        tiny.generate(other, identity=tiny.identity())  # nor does one made by hand

    def test_taken_in_any_dtype_and_variant(self, person, saved, copy):
        for dtype in (torch.float16, torch.bfloat16):
            pipe = make()
            pipe.load_facesnap_adapter(saved, dtype=dtype)
            pipe.save_facesnap_adapter(copy, variant="low")
            other = make()
            other.load_facesnap_adapter(copy, variant="low", dtype=torch.float32)
            assert other.facesnap_config == pipe.facesnap_config
            tiny.generate(other, identity=person)

    def test_an_encoder_that_is_given_is_not_the_folders(self, person, saved, tmp_path):
        pipe, other = make(), make()
        pipe.load_facesnap_adapter(saved, image_encoder=tiny.image_encoder(seed=7))
        assert pipe.facesnap_config.image_encoder_fingerprint is None
        pipe.save_facesnap_adapter(tmp_path / "given")
        other.load_facesnap_adapter(tmp_path / "given")
        fresh = make()
        fresh.init_facesnap_adapter(
            other.facesnap_config,
            mixer={"hidden_size": 32, "attention_head_dim": 8},
            image_encoder=tiny.image_encoder(seed=8),
        )
        assert fresh.facesnap_config.image_encoder_fingerprint is None
        with pytest.raises(FaceEncoderMismatchError, match="image features"):
            tiny.generate(other, identity=person)

    def test_of_another_crop(self):
        pipe = make(seed=2, image_crop="arcface")
        with pytest.raises(FaceEncoderMismatchError, match="of image_encoder, .* those of image_encoder#arcface"):
            tiny.generate(pipe, identity=tiny.identity())
        own = dataclasses.replace(tiny.identity(), image_encoder_id="image_encoder#arcface")
        assert tiny.generate(pipe, identity=own).isfinite().all()

    def test_no_path_of_this_machine_in_them(self, tmp_path):
        tiny.image_encoder().save_pretrained(tmp_path / "clip")
        pipe = make()
        config = tiny.adapter_config(image_encoder_id=str(tmp_path / "clip"))
        pipe.init_facesnap_adapter(config, mixer={"hidden_size": 32, "attention_head_dim": 8})
        photo = PIL.Image.new("RGB", (120, 100))
        embedding = tiny.identity().face_embeds
        person = pipe.encode_face(photo, embedding=embedding, landmarks=tiny.face_points())
        assert person.image_encoder_id == "image_encoder"
        pipe.save_facesnap_adapter(tmp_path / "adapter")
        other = make()
        other.load_facesnap_adapter(tmp_path / "adapter")
        tiny.generate(other, identity=person)

    def test_in_several_files(self, saved, trained, tmp_path):
        trained.face_image_encoder.save_pretrained(tmp_path, max_shard_size="20KB")
        parts = check_files(tmp_path, "model", None)
        assert len(parts) > 1
        assert fingerprint(parts) == fingerprint(check_files(saved / "image_encoder", "model", None))


@pytest.mark.parametrize(
    "name",
    [
        '"); import os; os.system("true") #',
        "<script>alert(1)</script>",
        "a\n```\n# heading",
        "![x](http://tracker.example/pixel.png)",
        "a | b",
    ],
)
def test_names_are_text_in_a_model_card(name, tmp_path):
    import ast

    from huggingface_hub import ModelCard

    config = tiny.adapter_config(base_model=name, image_encoder_id=name, base_family=name)
    write_model_card(tmp_path / "README.md", config, name)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == name
    text = card.text
    outside = re.sub(r"```py\n.*?\n```", "", text, flags=re.DOTALL)
    assert "<script" not in outside and "![x]" not in outside and "\n# heading" not in outside
    blocks = text.split("```py\n")[1:]
    assert len(blocks) == 2
    for block in blocks:
        code = ast.parse(block.split("\n```")[0])
        calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
        assert not any(getattr(call.func, "attr", "") == "system" for call in calls)
        strings = [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
        assert name in strings


def test_a_pipeline_of_a_path_that_cannot_be_one(empty):
    for name in ("a\0b", "x" * 5000):
        with pytest.raises((InputError, AdapterError)):
            empty.load_facesnap_adapter(name)
    assert isinstance(empty, FaceSnapPipeline)
