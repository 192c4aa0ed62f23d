"""Settings of shards and of `facesnap prepare`: one set of defaults, from the command line to the folder."""

import json

import pytest
from tiny_preparation import MarkedFaces, photo
from typer.testing import CliRunner

from facesnap_diffusers.cli import app
from facesnap_diffusers.data import photo_preparation
from facesnap_diffusers.data.shard_settings import PrepareConfig, ShardSettings
from facesnap_diffusers.data.shards import SETTINGS, ShardWriter, read_settings
from facesnap_diffusers.errors import InputError


class TestSettings:
    def test_sizes_follow_the_recognition_crop(self):
        assert ShardSettings("a", recognition_crop="arcface").recognition_crop_size == 112
        assert ShardSettings("a", recognition_crop="dlib").recognition_crop_size == 150
        assert PrepareConfig(recognition_crop="dlib").recognition_crop_size == 150
        assert PrepareConfig(recognition_crop="dlib", recognition_crop_size=64).recognition_crop_size == 64
        assert ShardSettings("a", recognition_crop=None).recognition_crop_size is None

    def test_embeddings_are_those_of_the_pipelines_analyzers(self):
        """InsightFace's are normalized by default, dlib's are not."""
        assert PrepareConfig().normalized_embeds is True
        assert PrepareConfig(face_encoder_id="dlib/face_recognition_resnet_model_v1").normalized_embeds is False
        assert PrepareConfig(normalized_embeds=False).normalized_embeds is False

    def test_of_a_preparation(self):
        config = PrepareConfig(image_crop="arcface", recognition_crop="dlib", min_face=30)
        settings = config.shard_settings()
        given = ("face_encoder_id", "normalized_embeds", "image_crop", "clip_crop_size", "recognition_crop")
        assert all(getattr(settings, name) == getattr(config, name) for name in given)
        assert settings.preparation["min_face"] == 30 and "image_crop" not in settings.preparation

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"image_crop": "body"}, "image_crop is 'body'"),
            ({"recognition_crop": "facenet"}, "recognition_crop is 'facenet'"),
            ({"clip_crop_size": True}, "clip_crop_size is True"),
            ({"recognition_crop_size": 4}, "recognition_crop_size is 4"),
            ({"image_format": "bmp"}, "image_format is 'bmp'"),
            ({"duplicate_bits": 16}, "duplicate_bits is 16"),
            ({"max_outside": 1.5}, "max_outside is 1.5"),
        ],
    )
    def test_wrong_values(self, values, message):
        with pytest.raises(InputError, match=f"PrepareConfig: {message}"):
            PrepareConfig(**values)

    def test_a_size_without_its_crop(self):
        with pytest.raises(InputError, match="recognition_crop_size is given without recognition_crop"):
            ShardSettings("a", recognition_crop=None, recognition_crop_size=64)


class TestFolder:
    def test_written_and_read(self, tmp_path):
        settings = ShardSettings("a", False, "arcface", 224, None, preparation={"seed": 3})
        ShardWriter(tmp_path, settings).close()
        assert read_settings(tmp_path) == settings
        ShardWriter(tmp_path, settings).close()
        with pytest.raises(InputError, match=r"other settings \(image_crop, seed\)"):
            ShardWriter(tmp_path, ShardSettings("a", False, "head", 224, None, preparation={"seed": 4}))
        assert read_settings(tmp_path) == settings

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"face_encoder": "a", "face_crop": ["arcface", 112]}', "has an unknown key face_encoder"),
            ("{}", "lacks face_encoder_id"),
            ("[]", "holds list"),
            ("nonsense", "is not JSON"),
        ],
    )
    def test_what_does_not_say_what_it_gives_is_refused(self, tmp_path, content, message):
        (tmp_path / SETTINGS).write_text(content)
        with pytest.raises(InputError, match=message):
            read_settings(tmp_path)


class TestCommand:
    @pytest.fixture
    def analyzers(self, monkeypatch):
        """The calls that made an analyzer, each with the face encoder and whether embeddings are normalized."""
        made = []

        def default_analyzer(encoder, normalize):
            made.append((encoder, normalize))
            return MarkedFaces(normalize)

        monkeypatch.setattr(photo_preparation, "default_analyzer", default_analyzer)
        return made

    def run(self, tmp_path, *options):
        (tmp_path / "in").mkdir()
        for seed in range(2):
            photo(seed, (560, 540)).save(tmp_path / "in" / f"{seed}.png")
        arguments = ["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.exception
        return json.loads((tmp_path / "out" / SETTINGS).read_text())

    def test_without_options_it_has_the_defaults(self, tmp_path, analyzers):
        self.run(tmp_path)
        assert read_settings(tmp_path / "out") == PrepareConfig().shard_settings()
        assert analyzers == [("insightface/w600k_r50", True)]

    def test_options(self, tmp_path, analyzers):
        written = self.run(
            tmp_path, "--face-encoder-id", "insightface/glintr100", "--raw-embeds", "--image-crop", "arcface",
            "--clip-crop-size", "224", "--recognition-crop", "dlib", "--recognition-crop-size", "64", "--min-face", "20",
            "--min-sharpness", "0", "--max-outside", "0.2", "--second-face", "0.5", "--image-format", "png",
        )  # fmt: skip
        expected = {
            "face_encoder_id": "insightface/glintr100", "normalized_embeds": False, "image_crop": "arcface",
            "clip_crop_size": 224, "recognition_crop": "dlib", "recognition_crop_size": 64,
        }  # fmt: skip
        assert {name: written[name] for name in expected} == expected
        chosen = {"min_face": 20, "min_sharpness": 0, "max_outside": 0.2, "second_face": 0.5, "image_format": "png"}
        assert written["preparation"].items() >= chosen.items()
        assert analyzers == [("insightface/glintr100", False)]

    def test_nothing_kept_is_an_error(self, tmp_path, analyzers):
        (tmp_path / "in").mkdir()
        photo(0, (100, 100)).save(tmp_path / "in/small.png")
        result = CliRunner().invoke(app, ["prepare", str(tmp_path / "in"), str(tmp_path / "out")])
        assert result.exit_code != 0 and "small photo" in result.output
        assert isinstance(result.exception, InputError) and "no photo of" in str(result.exception)

    def test_devices_are_numbers(self, tmp_path, analyzers):
        result = CliRunner().invoke(app, ["prepare", str(tmp_path), str(tmp_path / "out"), "--devices", "cuda:0"])
        assert isinstance(result.exception, InputError) and "--devices is 'cuda:0'" in str(result.exception)

    def test_normalized_embeds(self, tmp_path, analyzers):
        written = self.run(tmp_path, "--face-encoder-id", "dlib/other", "--normalized-embeds")
        assert written["normalized_embeds"] is True and analyzers == [("dlib/other", True)]
