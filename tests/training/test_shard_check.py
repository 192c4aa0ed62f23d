"""Shards that do not give what the adapter is trained with are refused before a base model is loaded."""

import dataclasses

import pytest
import tiny
import tiny_training

from facesnap_diffusers.adapter.config import FaceSnapConfig
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training import trainer
from facesnap_diffusers.training.shard_check import check_key_points, check_shards
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import RecognizerConfig


ADAPTER = FaceSnapConfig(face_encoder_id="a/b")
SETTINGS = ShardSettings("a/b", recognition_crop="dlib", recognition_crop_size=64)
RECOGNIZER = RecognizerConfig("module:function", crop="dlib", size=64)


def check(adapter=None, settings=None, recognizer=RECOGNIZER, shows_reference=True):
    check_shards(
        ADAPTER.replace(**adapter or {}),
        dataclasses.replace(SETTINGS, **settings or {}),
        "shards",
        recognizer,
        shows_reference,
    )


WRONG = [
    ({"face_encoder_id": "c/d"}, {}, "has embeddings of a/b, the adapter is for c/d"),
    ({"normalized_embeds": False}, {}, "embeddings of unit length, .* the face encoder's own length; .* --raw-embeds"),
    ({}, {"normalized_embeds": False}, "the face encoder's own length, .* unit length; .* --normalized-embeds"),
    ({"image_crop": "arcface"}, {}, "crop 'head' .* for 'arcface'; prepare it with --image-crop arcface"),
    ({}, {"image_crop": "arcface"}, "crop 'arcface' .* for 'head'; prepare it with --image-crop head"),
    ({}, {"recognition_crop": "arcface"}, "has arcface crops of 64 pixels, .* takes dlib crops of 64 pixels"),
    ({}, {"recognition_crop_size": 65}, "has dlib crops of 65 pixels, .* takes dlib crops of 64 pixels"),
    (
        {},
        {"recognition_crop": None, "recognition_crop_size": None},
        "no recognition crops, .* --recognition-crop dlib",
    ),
]


def test_shards_that_fit_are_accepted():
    check()
    check({"image_crop": "arcface", "normalized_embeds": False}, {"image_crop": "arcface", "normalized_embeds": False})


def test_shards_of_smaller_pictures_are_refused():
    """A run at 1024 pixels on photos scaled down for 512 would train on enlarged ones."""
    small = dataclasses.replace(SETTINGS, preparation={"resolution": 512})
    for resolution in (256, 512):
        check_shards(ADAPTER, small, "shards", RECOGNIZER, resolution=resolution)
    with pytest.raises(InputError, match="prepared for pictures of 512 pixels, .* --resolution 1024, or set"):
        check_shards(ADAPTER, small, "shards", RECOGNIZER, resolution=1024)
    check_shards(ADAPTER, SETTINGS, "shards", RECOGNIZER, resolution=1024)  # shards of one's own say nothing of it


@pytest.mark.parametrize(("adapter", "settings", "message"), WRONG)
def test_shards_that_do_not_fit_are_refused_in_one_line(adapter, settings, message):
    with pytest.raises(InputError, match=message) as error:
        check(adapter, settings)
    assert "\n" not in str(error.value)


def test_what_an_adapter_does_not_take_need_not_fit():
    other_face = {"face_encoder_id": "c/d", "normalized_embeds": False}
    check({"face_embed_dim": None}, other_face)
    check({"image_encoder_id": None}, {"image_crop": "arcface"})
    no_crops = {"recognition_crop": None, "recognition_crop_size": None}
    check({}, no_crops, recognizer=None, shows_reference=False)
    with pytest.raises(InputError, match="which validation images show"):
        check({}, no_crops, recognizer=None)


def test_crops_that_are_smaller_than_the_image_encoders_pictures_are_refused():
    small = dataclasses.replace(SETTINGS, clip_crop_size=224)
    check_shards(ADAPTER, small, "shards", image_size=224)
    with pytest.raises(InputError, match="crops of 224 pixels .* takes 336; prepare it with --clip-crop-size 336"):
        check_shards(ADAPTER, small, "shards", image_size=336)


class TestKeyPoints:
    """Where a pipeline takes the detector's own key points, training takes no others."""

    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("shards")
        for key_points in (True, False):
            settings = {"face_encoder_id": "insightface/own", "image_crop": "arcface"}
            tiny_training.write_faces(folder / str(key_points), 1, 1, key_points, **settings)
        return folder

    @pytest.mark.parametrize(
        ("adapter", "use"),
        [
            ({"image_crop": "arcface"}, "crop 'arcface'"),
            ({"landmark_style": "instantid5"}, "landmark style 'instantid5'"),
            ({}, None),
            ({"image_crop": "arcface", "image_encoder_id": None}, None),
            ({"landmark_style": "instantid5", "parts": ["mixer", "identity_attention"]}, None),
            ({"image_crop": "arcface", "face_encoder_id": "dlib/face_recognition_resnet_model_v1"}, None),
        ],
    )
    def test_are_needed(self, folders, adapter, use):
        adapter = ADAPTER.replace(**{"face_encoder_id": "insightface/own", **adapter})
        check_key_points(adapter, str(folders / "True"))
        if use is None:
            check_key_points(adapter, str(folders / "False"))
        else:
            with pytest.raises(InputError, match=f"without the detector's key points, .* {use} .*; prepare it again"):
                check_key_points(adapter, str(folders / "False"))

    def test_are_asked_for_before_a_base_model_is_loaded(self, base, folders, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer, "load_pipeline", lambda config: pytest.fail("the base model is loaded"))
        adapter = {"face_encoder_id": "insightface/own", "image_crop": "arcface"}
        for data in ({}, {"shards": [str(folders / "True")], "validation": [str(folders / "False")]}):
            with pytest.raises(InputError, match="without the detector's key points"):
                Trainer(tiny_training.config(base, folders / "False", tmp_path, adapter=adapter, data=data))


class TestTrainer:
    @pytest.fixture(autouse=True)
    def no_base_is_loaded(self, monkeypatch):
        def load(config):
            raise AssertionError("the base model is loaded")

        monkeypatch.setattr(trainer, "load_pipeline", load)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"adapter": {"face_encoder_id": "other"}}, "has embeddings of dlib"),
            ({"adapter": {"normalized_embeds": False}}, "embeddings of unit length"),
            ({"adapter": {"image_crop": "arcface"}}, "crop 'head'"),
            (
                {
                    "identity_loss": {
                        "reference": "photo",
                        "recognizer": {"network": "tiny_training:TinyRecognizer", "size": 64},
                    }
                },
                "arcface crops of 32 pixels",
            ),
        ],
    )
    def test_a_fresh_adapter(self, base, faces, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            Trainer(tiny_training.config(base, faces, tmp_path, **changes))
        # of the validation shards too
        tiny_training.write_faces(tmp_path / "fits", 1, 1, **self.as_settings(changes))
        data = {"shards": [str(tmp_path / "fits")], "validation": [str(faces)]}
        with pytest.raises(InputError, match=message):
            Trainer(tiny_training.config(base, faces, tmp_path, **{**changes, "data": data}))

    @staticmethod
    def as_settings(changes):
        if "adapter" in changes:
            return changes["adapter"]
        return {"recognition_crop_size": changes["identity_loss"]["recognizer"]["size"]}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_crop": "arcface"}, "crop 'head'"),
            ({"normalized_embeds": False}, "embeddings of unit length"),
            ({"face_encoder_id": "somebody/else"}, "has embeddings of dlib"),
        ],
    )
    def test_an_adapter_that_is_trained_further(self, base, faces, tmp_path, change, message):
        """What it is made for stands in its folder, whatever the config says of fresh adapters."""
        pipe = tiny.facesnap(tiny.sd_pipeline())
        tiny.add_adapter(pipe, **change)
        pipe.save_facesnap_adapter(tmp_path / "adapter")
        with pytest.raises(InputError, match=message):
            Trainer(tiny_training.config(base, faces, tmp_path, adapter={"start_from": str(tmp_path / "adapter")}))

    def test_clip_crops_that_are_too_small(self, base, tmp_path):
        tiny_training.write_faces(tmp_path / "faces", 1, 1, clip_crop_size=16)
        with pytest.raises(InputError, match="crops of 16 pixels for the image encoder, which takes 32"):
            Trainer(tiny_training.config(base, tmp_path / "faces", tmp_path))

    def test_small_pictures_for_validation(self, base, faces, tmp_path):
        """Of validation shards too."""
        tiny_training.write_faces(tmp_path / "faces", 1, 1, preparation={"resolution": 16})
        data = {"validation": [str(tmp_path / "faces")]}
        with pytest.raises(InputError, match="prepared for pictures of 16 pixels"):
            Trainer(tiny_training.config(base, faces, tmp_path, data=data))

    def test_no_recognition_crops(self, base, tmp_path):
        tiny_training.write_faces(tmp_path / "faces", 1, 1, recognition_crop=None)
        config = tiny_training.config(base, tmp_path / "faces", tmp_path, identity_loss={"reference": "photo"})
        with pytest.raises(InputError, match="no recognition crops"):
            Trainer(config)
        config = tiny_training.config(
            base, tmp_path / "faces", tmp_path, data={"validation": [str(tmp_path / "faces")]}
        )
        with pytest.raises(InputError, match="which validation images show"):
            Trainer(config)


@pytest.mark.parametrize(
    "conditions", [{"image_crop": "arcface"}, {"normalized_embeds": False}, {"landmark_style": "instantid5"}]
)
def test_an_adapter_of_other_conditions_is_trained_on_shards_that_give_them(base, tmp_path, conditions):
    given = {name: value for name, value in conditions.items() if name != "landmark_style"}
    tiny_training.write_faces(tmp_path / "faces", 2, 2, **given)
    config = tiny_training.config(
        base,
        tmp_path / "faces",
        tmp_path / "run",
        steps=1,
        adapter=conditions,
        data={"validation": [str(tmp_path / "faces")]},
    )
    tiny_training.train(config)
    saved = FaceSnapConfig.load(tmp_path / "run/adapter")
    assert {name: getattr(saved, name) for name in conditions} == conditions


def test_shards_without_recognition_crops_train_an_adapter(base, tmp_path):
    tiny_training.write_faces(tmp_path / "faces", 2, 2, recognition_crop=None)
    config = tiny_training.config(
        base,
        tmp_path / "faces",
        tmp_path / "run",
        steps=1,
        data={"validation": [str(tmp_path / "faces")]},
        validation={"images": 0},
    )
    assert tiny_training.train(config).results["validation/mse"] > 0


def test_only_the_crops_size_is_checked_after_an_image_encoder_from_elsewhere_is_loaded(base, tmp_path, monkeypatch):
    """The size of one on the Hub is known last: then its crops are checked, and no record is read again."""
    tiny_training.write_faces(tmp_path / "fits", 1, 1)
    tiny_training.write_faces(tmp_path / "small", 1, 1, clip_crop_size=16)
    monkeypatch.setattr(trainer, "local_image_size", lambda config, adapter: None)
    check, checked = trainer.check_key_points, []
    monkeypatch.setattr(
        trainer, "check_key_points", lambda *arguments: checked.append(arguments[1]) or check(*arguments)
    )
    data = {"shards": [str(tmp_path / "fits")], "validation": [str(tmp_path / "small")]}
    with pytest.raises(InputError, match="small has crops of 16 pixels for the image encoder, which takes 32"):
        Trainer(tiny_training.config(base, tmp_path, tmp_path / "run", data=data))
    assert checked == data["shards"] + data["validation"]
