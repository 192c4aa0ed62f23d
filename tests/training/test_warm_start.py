"""Fresh adapters that start from InstantID and IP-Adapter FaceID, in their public file formats."""

import copy
import dataclasses
import shutil

import pytest
import third_party
import tiny
import tiny_training
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from interop.test_instantid import resampler
from tiny_training import assert_same, train
from transformers import CLIPImageProcessor

from facesnap_diffusers import FaceSnapConfig, FaceSnapPipeline, load_landmark_predictor
from facesnap_diffusers.conditioner import FaceConditioner
from facesnap_diffusers.data.folder_lock import FolderLock
from facesnap_diffusers.data.shards import PreparedFaces, ShardWriter
from facesnap_diffusers.errors import AdapterError, InputError
from facesnap_diffusers.interop.conversion import FACEID_PLUS_IMAGE_ENCODER
from facesnap_diffusers.interop.mixers import InstantIDMixer
from facesnap_diffusers.models.mixer import FacialAttributeMixer
from facesnap_diffusers.training import trainer as trainer_module
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import AdapterConfig
from facesnap_diffusers.training.warm_start import _settings, ffrnet_of, imitate


pytestmark = pytest.mark.slow


LESSONS = 10


def embeddings(count: int, seed: int, length: float) -> torch.Tensor:
    """Of made-up people who differ in four ways, `(count, 512)`."""
    directions = torch.randn(4, third_party.FACE_WIDTH, generator=torch.Generator().manual_seed(11))
    people = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return length * F.normalize(people @ directions, dim=1)


def write_shards(faces, folder, count: int = 40, **settings) -> None:
    """The photos of `faces` again and again, each with the embedding of somebody else."""
    photos = PreparedFaces([str(faces)])
    settings = dataclasses.replace(photos.settings[0], **settings)
    embeds = embeddings(count, 0, 1.0 if settings.normalized_embeds else 21.0).numpy()
    with ShardWriter(folder, settings) as writer:
        for number, embedding in enumerate(embeds):
            face = photos[number % len(photos)]
            face.embedding = embedding
            writer.add(face, str(number))


@pytest.fixture(scope="module")
def instantid_faces(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("instantid-faces") / "shards"
    write_shards(faces, folder, face_encoder_id="insightface/glintr100", normalized_embeds=False)
    return folder


@pytest.fixture(scope="module")
def faceid_faces(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faceid-faces") / "shards"
    write_shards(faces, folder, face_encoder_id="insightface/w600k_r50")
    return folder


@pytest.fixture(scope="module")
def instantid(tmp_path_factory):
    """Laid out as InstantX/InstantID, for the tiny base."""
    folder = tmp_path_factory.mktemp("instantid")
    unet = tiny.sd_pipeline().unet
    torch.save(third_party.instantid(unet, num_tokens=6, hidden=64), folder / "ip-adapter.bin")
    third_party.instantid_controlnet(unet).save_pretrained(folder / "ControlNetModel")
    return folder


def config(base_model, faces, folder, source, lessons=2, **changes):
    settings = {"warm_start": str(source), "warm_start_steps": lessons, **changes.pop("adapter", {})}
    without = {"weight": 0.0, "recognizer": None}
    return tiny_training.config(
        base_model, faces, folder, identity_loss=without, **{"steps": 2, **changes}, adapter=settings
    )


def by_number(identity_attention, unet):
    """The keys and values, and the LoRA, under the names that they have in the public files."""
    tensors = {}
    for number, processor in enumerate(unet.attn_processors):
        name = processor.removesuffix(".processor").replace(".", "-")
        if name in identity_attention.projections:
            for key in ("to_k", "to_v"):
                linear = getattr(identity_attention.projections[name], key)
                tensors[f"{number}.{key}_ip.weight"] = linear.weight
        for full_name, lora in identity_attention.loras.items():
            if full_name.startswith(f"{name}-"):
                key = full_name.removeprefix(f"{name}-").removesuffix("-0")
                for part in ("down", "up"):
                    tensors[f"{number}.{key}_lora.{part}.weight"] = getattr(lora, part).weight
    return {name: tensor.detach() for name, tensor in tensors.items()}


class TestInstantID:
    @pytest.fixture(scope="class")
    def trainer(self, base, instantid_faces, instantid, tmp_path_factory):
        """Of a run before its first step."""
        trainer = Trainer(config(base, instantid_faces, tmp_path_factory.mktemp("run"), instantid, LESSONS))
        tiny_training.reset_accelerate()
        return trainer

    def test_what_it_is_made_for(self, trainer):
        made_for = trainer.pipeline.facesnap_config
        assert (made_for.face_encoder_id, made_for.normalized_embeds) == ("insightface/glintr100", False)
        assert (made_for.face_embed_dim, made_for.num_tokens) == (512, 6)
        assert (made_for.landmark_style, made_for.recommended_scales) == ("facesnap72", {})
        assert (trainer.folder / "log.txt").read_text().startswith("warm start: cosine_before ")
        assert made_for.parts == ["mixer", "identity_attention", "ffrnet", "landmark_predictor"]
        assert isinstance(trainer.pipeline.mixer, FacialAttributeMixer)

    def test_keys_and_values_are_the_public_ones(self, trainer, instantid):
        public = torch.load(instantid / "ip-adapter.bin", weights_only=True)["ip_adapter"]
        pipeline = trainer.pipeline
        assert_same(by_number(pipeline.identity_attention, pipeline.unet), public)

    def test_ffrnet_is_identitynet_before_anything_is_drawn(self, trainer, instantid):
        controlnet = ControlNetModel.from_pretrained(instantid / "ControlNetModel")
        ffrnet, new = trainer.pipeline.ffrnet, "controlnet_cond_embedding.conv_out."
        assert ffrnet.config.pooled_text
        own, public = ffrnet.state_dict(), controlnet.state_dict()
        assert own.keys() == public.keys()
        for name in own:
            assert torch.equal(own[name], public[name]) or name.startswith(new), name
        with torch.no_grad():
            black = controlnet.controlnet_cond_embedding(torch.zeros(1, 3, 64, 64))
            drawn = ffrnet.embed_landmarks(torch.rand(1, 3, 64, 64))
            lit = controlnet.controlnet_cond_embedding(torch.rand(1, 3, 64, 64))
        inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # without what padding does at the edges
        assert (lit - black)[inside].abs().max() > 1e-2
        torch.testing.assert_close(drawn[inside], black[inside], atol=1e-6, rtol=0)

    def test_the_mixer_says_what_the_projection_says(self, trainer, instantid):
        """Of people it has not seen, whatever the photo shows; and of nobody."""
        projection = torch.load(instantid / "ip-adapter.bin", weights_only=True)["image_proj"]
        embeds = embeddings(100, 1, 21.0)
        nobody = torch.arange(100) == 99
        wanted = resampler(projection, embeds.masked_fill(nobody[:, None], 0)[:, None], heads=1)
        mixer = trainer.pipeline.mixer
        torch.manual_seed(4)
        untaught = FacialAttributeMixer.from_config(mixer.config)

        def distance(mixer, chosen):
            """The mean squared error relative to what differs from person to person, and the mean cosine."""
            with torch.no_grad():
                tokens = mixer(embeds, torch.randn(100, 5, 24), nobody)
            error = (tokens - wanted)[chosen].square().mean() / (wanted[:99] - wanted[:99].mean(0)).square().mean()
            return error.item(), F.cosine_similarity(tokens[chosen], wanted[chosen], dim=-1).mean().item()

        (before, cosine_before), (after, cosine) = (distance(some, ~nobody) for some in (untaught, mixer))
        assert after < 0.2 and before > 5
        assert cosine > 0.98 and cosine_before < 0.5
        assert distance(mixer, nobody)[1] > 0.999

    def test_is_the_same_again(self, trainer, base, instantid_faces, instantid, tmp_path):
        """The stored one serves as long as the settings are the same; with another seed it is another."""
        again = Trainer(config(base, instantid_faces, tmp_path, instantid, LESSONS))
        assert_same(dict(trainer.objective.state_dict()), dict(again.objective.state_dict()))
        made = (tmp_path / "start/warm_start.json").stat().st_mtime_ns
        for seed, same in ((0, True), (1, False)):
            tiny_training.reset_accelerate()
            other = Trainer(config(base, instantid_faces, tmp_path, instantid, LESSONS, seed=seed))
            assert ((tmp_path / "start/warm_start.json").stat().st_mtime_ns == made) == same
            assert torch.equal(trainer.pipeline.mixer.queries, other.pipeline.mixer.queries) == same

    def test_depends_on_the_photos_and_the_revision_of_the_base(self, base, instantid_faces, instantid, tmp_path):
        settings = config(base, instantid_faces, tmp_path, instantid, LESSONS)
        photos = dataclasses.replace(settings, data=dataclasses.replace(settings.data, shards=["others"]))
        revision = dataclasses.replace(settings, base=dataclasses.replace(settings.base, revision="v2"))
        more_steps = dataclasses.replace(settings, steps=settings.steps + 1)
        same = [_settings(other) == _settings(settings) for other in (photos, revision, more_steps)]
        assert same == [False, False, True]

    def test_is_not_made_where_another_process_writes(self, base, instantid_faces, instantid, tmp_path):
        with FolderLock(tmp_path), pytest.raises(InputError, match="is written to by process"):
            Trainer(config(base, instantid_faces, tmp_path, instantid, LESSONS))
        assert not (tmp_path / "start").exists()

    def test_a_resumed_run_ends_with_the_same_bits(self, base, instantid_faces, instantid, tmp_path):
        """The other adapter is not needed again."""
        shutil.copytree(instantid, tmp_path / "other")

        def settings(folder, steps):
            optimizer = {"lr_scheduler": "constant"}
            return config(
                base, instantid_faces, folder, tmp_path / "other", steps=steps, checkpoint_every=2, optimizer=optimizer
            )

        once = train(settings(tmp_path / "once", 4))
        train(settings(tmp_path / "twice", 2))
        shutil.rmtree(tmp_path / "other")
        torch.manual_seed(123)  # what happens between must not matter
        twice = train(settings(tmp_path / "twice", 4))
        assert twice.progress.step == 4
        assert_same(dict(once.objective.state_dict()), dict(twice.objective.state_dict()))
        start = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
        start.load_facesnap_adapter(tmp_path / "twice/start")
        for name, parameter in twice.objective.named_parameters():
            part, _, rest = name.removeprefix("parts.").partition(".")
            moved = not torch.equal(parameter, getattr(start, part).get_parameter(rest))
            assert moved or rest == "unconditional_tokens", name


def test_a_small_ffrnet_of_identitynet(instantid):
    """A full one gives IdentityNet's residuals; one of low rank gives others, and has few numbers of its own."""
    unet = tiny.sd_pipeline().unet
    controlnet = ControlNetModel.from_pretrained(instantid / "ControlNetModel")
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 64, generator=generator)
    call = (
        torch.randn(1, 4, 32, 32, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 6, 32, generator=generator),
    )
    full, small = (ffrnet_of(controlnet, unet, rank, redrawn=False)[0] for rank in (None, 4))
    with torch.no_grad():
        wanted, given = (net(*call, picture, return_dict=False) for net in (controlnet, full))
        lost = small(*call, picture, return_dict=False)
    for one, other in zip([*wanted[0], wanted[1]], [*given[0], given[1]]):
        assert torch.equal(one, other)
    assert small.config.rank == 4 and small.is_bound_to(unet)
    assert not torch.equal(lost[1], wanted[1])
    count = [sum(parameter.numel() for parameter in net.parameters()) for net in (full, small)]
    assert count[1] < 0.6 * count[0]


class TestFaceID:
    def test_with_its_lora_and_an_ffrnet_of_the_unet(self, base, faceid_faces, tmp_path):
        pipe = tiny.sd_pipeline()
        public = third_party.faceid(pipe.unet)
        torch.save(public, tmp_path / "ip-adapter-faceid_sd15.bin")
        settings = config(base, faceid_faces, tmp_path / "run", tmp_path / "ip-adapter-faceid_sd15.bin")
        trainer = Trainer(settings)
        made_for = trainer.pipeline.facesnap_config
        assert (made_for.face_encoder_id, made_for.normalized_embeds) == ("insightface/w600k_r50", True)
        assert (made_for.num_tokens, made_for.face_embed_dim) == (4, 512)
        assert_same(by_number(trainer.pipeline.identity_attention, trainer.pipeline.unet), public["ip_adapter"])
        ffrnet = trainer.pipeline.ffrnet
        assert torch.equal(ffrnet.conv_in.weight, trainer.pipeline.unet.conv_in.weight)
        assert all(not layer.weight.any() for layer in ffrnet.controlnet_down_blocks)
        trainer.train()
        trained = by_number(trainer.pipeline.identity_attention, trainer.pipeline.unet)
        assert all(not torch.equal(trained[name], tensor) for name, tensor in public["ip_adapter"].items())
        assert "a fresh adapter with the weights of ip-adapter-faceid_sd15.bin" in self.card(tmp_path / "run")
        assert "face_embed_dim" not in self.card(tmp_path / "run")  # the config's is not the adapter's

    @staticmethod
    def card(folder):
        return (folder / "adapter/README.md").read_text()

    def test_a_file_of_a_folder_without_ffrnet(self, base, faceid_faces, tmp_path):
        torch.save(third_party.portrait(tiny.sd_pipeline().unet), tmp_path / "portrait.bin")
        parts = ["mixer", "identity_attention"]
        adapter = {"warm_start_file": "portrait.bin", "parts": parts, "train": parts}
        pipeline = Trainer(config(base, faceid_faces, tmp_path / "run", tmp_path, adapter=adapter)).pipeline
        assert pipeline.ffrnet is None and pipeline.mixer.num_tokens == 16
        assert FaceSnapConfig.load(tmp_path / "run/start").parts == [*parts, "landmark_predictor"]

    def test_plus_brings_its_image_encoder_and_crop(self, base, faces, tmp_path, hub, hub_cache):
        """And the mixer is taught with what that sees: where it sees something else, its tokens are others."""
        tiny.image_encoder(seed=8).save_pretrained(tmp_path / "encoder")
        hub.add_folder(FACEID_PLUS_IMAGE_ENCODER, tmp_path / "encoder")
        tiny_training.write_faces(tmp_path / "small", 2, 1, key_points=True, image_crop="arcface")
        write_shards(tmp_path / "small", tmp_path / "faces", face_encoder_id="insightface/w600k_r50")
        torch.save(third_party.faceid_plus(tiny.sd_pipeline().unet), tmp_path / "ip-adapter-faceid-plusv2_sd15.bin")
        settings = config(base, tmp_path / "faces", tmp_path / "run", tmp_path / "ip-adapter-faceid-plusv2_sd15.bin")
        pipeline = train(settings).pipeline
        made_for = pipeline.facesnap_config
        assert (made_for.image_encoder_id, made_for.image_crop) == (FACEID_PLUS_IMAGE_ENCODER, "arcface")
        assert_same(dict(pipeline.face_image_encoder.state_dict()), dict(tiny.image_encoder(seed=8).state_dict()))
        # shards without that crop
        write_shards(faces, tmp_path / "head", face_encoder_id="insightface/w600k_r50")
        with pytest.raises(InputError, match="crop 'head' .* for 'arcface'"):
            Trainer(config(base, tmp_path / "head", tmp_path / "other", settings.adapter.warm_start))


class TestRefused:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"start_from": "a", "warm_start": "b"}, "start_from and warm_start are both given"),
            ({"warm_start_file": "b.bin"}, "warm_start_file is given without warm_start"),
        ],
    )
    def test_settings(self, values, message):
        with pytest.raises(InputError, match=message) as error:
            AdapterConfig(**values)
        assert "\n" not in str(error.value)

    @pytest.fixture
    def no_base(self, monkeypatch):
        monkeypatch.setattr(trainer_module, "load_pipeline", lambda config: pytest.fail("the base model is loaded"))

    @pytest.mark.usefixtures("no_base", "hub_cache")
    def test_shards_of_another_face_encoder(self, faceid_faces, instantid, base, tmp_path, hub):
        """Of a public adapter it is known before a byte of it is loaded."""
        tiny.xl_pipeline().save_pretrained(tmp_path / "xl")
        for model, source in ((base, instantid), (tmp_path / "xl", "InstantX/InstantID")):
            family = {"family": "sd" if model == base else "sdxl"}
            with pytest.raises(InputError, match="embeddings of insightface/w600k_r50, .* insightface/glintr100"):
                Trainer(config(model, faceid_faces, tmp_path / "run", source, base=family))
        assert not hub.requests

    @pytest.mark.usefixtures("no_base")
    def test_shards_of_embeddings_of_another_length(self, faces, instantid, base, tmp_path):
        write_shards(faces, tmp_path / "faces", 1, face_encoder_id="insightface/glintr100")
        with pytest.raises(InputError, match="--raw-embeds"):
            Trainer(config(base, tmp_path / "faces", tmp_path / "run", instantid))

    @pytest.mark.usefixtures("no_base")
    def test_adapters(self, base, faces, faceid_faces, tmp_path):
        unet = tiny.sd_pipeline().unet
        torch.save(third_party.plus_face(unet), tmp_path / "plus-face.bin")
        torch.save(third_party.faceid(tiny.xl_unet()), tmp_path / "faceid-xl.bin")
        own = tiny.new_pipeline()
        tiny.add_adapter(own)
        own.save_facesnap_adapter(tmp_path / "own")
        for source, error, message in (
            ("plus-face.bin", InputError, "takes no face embedding"),
            ("faceid-xl.bin", AdapterError, "use a file made for"),
            ("own", InputError, "is a FaceSnap adapter; continue it with adapter.start_from"),
            ("nothing", AdapterError, "neither|could not be loaded"),
        ):
            with pytest.raises(error, match=message) as caught:
                Trainer(config(base, faceid_faces, tmp_path / "run", tmp_path / source))
            assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="base.model .* could not be loaded"):
            Trainer(config(tmp_path, faceid_faces, tmp_path / "run", tmp_path / "faceid-xl.bin"))


def test_converted_adapters_serve_too(base, instantid_faces, instantid, tmp_path):
    """A folder in FaceSnap's format with another kind of mixer: here with an image encoder that it does not look at."""
    pipe = tiny.new_pipeline()
    pipe.load_facesnap_adapter(instantid)
    expected = copy.deepcopy(dict(pipe.identity_attention.state_dict()))
    pipe.save_facesnap_adapter(tmp_path / "converted")
    pipeline = Trainer(config(base, instantid_faces, tmp_path / "run", tmp_path / "converted")).pipeline
    assert_same(dict(pipeline.identity_attention.state_dict()), expected)
    assert (
        isinstance(pipeline.mixer, FacialAttributeMixer)
        and not pipeline.ffrnet.embed_landmarks(torch.rand(1, 3, 32, 32)).std(dim=(2, 3)).any()
    )


def test_the_image_encoder_can_stand_in_a_folder_of_its_own(base, instantid_faces, instantid, tmp_path):
    """With `bundle_image_encoder` it becomes a part of the adapter, and is found there by a run that goes on."""
    tiny.image_encoder(seed=9).save_pretrained(tmp_path / "encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "encoder"
    )
    adapter = {"image_encoder_id": str(tmp_path / "encoder")}
    settings = config(base, instantid_faces, tmp_path / "run", instantid, adapter=adapter)
    Trainer(settings)
    tiny_training.reset_accelerate()
    shutil.rmtree(tmp_path / "encoder")
    pipeline = Trainer(settings).pipeline
    assert_same(dict(pipeline.face_image_encoder.state_dict()), dict(tiny.image_encoder(seed=9).state_dict()))


@pytest.mark.parametrize("shortcut", [True, False])
def test_more_lessons_teach_more(instantid_faces, shortcut):
    """What a linear map of the face cannot say; without a shortcut, all of it."""
    torch.manual_seed(0)
    teacher = InstantIDMixer(32, third_party.FACE_WIDTH, num_tokens=4, hidden_size=64, num_heads=1).eval()

    def unexplained(lessons: int) -> float:
        torch.manual_seed(1)
        sizes = {"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8, "face_shortcut": shortcut}
        mixer = FacialAttributeMixer(32, third_party.FACE_WIDTH, None, num_tokens=4, **sizes)
        student, other = (
            FaceConditioner(FaceSnapConfig(), some, load_landmark_predictor()) for some in (mixer, teacher)
        )
        return imitate(student, other, PreparedFaces([str(instantid_faces)]), lessons)["unexplained"]

    few, many = unexplained(1), unexplained(100)
    print(few, many)
    assert many < (0.7 if shortcut else 0.2) * few
