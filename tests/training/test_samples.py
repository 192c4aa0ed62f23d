"""Training samples: functions of seed and position."""

import dataclasses
import io
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import tiny_training
import torch
from tiny_training import assert_same, reset_accelerate

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.key_points import five_points
from facesnap_diffusers.training.samples import Crop, ResumableBatchSampler, _random_crop
from facesnap_diffusers.training.trainer import Trainer


SIDE = 24  # of the pictures, of photos of 32 pixels


def test_order_of_samples_does_not_depend_on_processes():
    whole = [position for batch in ResumableBatchSampler(3, 9, 4) for position in batch]
    halves = [list(ResumableBatchSampler(3, 9, 2, rank, 2)) for rank in range(2)]
    assert whole == [position for pair in zip(*halves) for batch in pair for position in batch]
    assert whole == list(range(12, 36))


@pytest.mark.parametrize("size", [(40, 50), (48, 60), (72, 90)])
def test_pictures_are_scaled_as_pillow_scales_them(size):
    """Smaller, as they are, and larger; to one of 256 levels but for rounding twice."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels).resize((96, 80), PIL.Image.Resampling.BICUBIC)
    expected = np.array(image.crop((7, 11, 67, 59)).resize(size[::-1], PIL.Image.Resampling.BICUBIC), dtype=float)
    for mirrored in (False, True):
        crop = Crop(image.size, image.size, 7, 11, 60, 48, size, mirrored)
        found = (crop.pixels(image).permute(1, 2, 0).numpy() / 2 + 0.5) * 255
        assert found.shape == (*size, 3) and found.dtype == np.float32
        assert np.abs((found[:, ::-1] if mirrored else found) - expected).max() <= 2


class TestSamples:
    @pytest.fixture(scope="class")
    def samples(self, base, faces, tmp_path_factory):
        dropout, data = {"text": 0.2, "both": 0.1}, {"resolution": SIDE}
        config = tiny_training.config(base, faces, tmp_path_factory.mktemp("run"), dropout=dropout, data=data)
        samples = Trainer(config).samples
        reset_accelerate()
        return samples

    def test_a_position_is_one_sample(self, samples):
        samples._epoch = -1
        first = samples[7]
        for position in (30, 2, 100):
            samples[position]
        assert_same(first, samples[7])
        assert not torch.equal(first["noise"], samples[8]["noise"])

    def test_every_photo_comes_once_in_an_epoch(self, samples):
        count = len(samples.faces)
        for epoch in range(2):
            order = [samples.photo(epoch * count + place) for place in range(count)]
            assert sorted(order) == list(range(count))
        assert order != [samples.photo(place) for place in range(count)]

    def test_reference_is_another_photo_of_the_same_person(self, samples):
        faces = samples.faces
        embeddings = np.stack([faces[index].embedding for index in range(len(faces))])
        for position in range(24):
            index = samples.photo(position)
            reference = np.abs(embeddings - samples[position]["face_embeds"].numpy()).max(axis=1).argmin()
            assert reference != index and faces.person[reference] == faces.person[index]

    def test_without_labels_the_reference_is_the_photo_itself(self, samples, monkeypatch):
        monkeypatch.setattr(samples.faces, "person", [None] * len(samples.faces))
        for position in range(6):
            own = samples.faces[samples.photo(position)].embedding
            assert np.array_equal(samples[position]["face_embeds"].numpy(), own)

    def test_landmarks_follow_crop_and_mirror(self, samples, monkeypatch):
        """The face's color, which nothing else in the image has, stands at the nose."""
        mirror = samples.predictor.config.mirror
        for position in range(12):
            face = samples.faces[samples.photo(position)]
            color = np.random.default_rng(int(face.info["identity"].removeprefix("person"))).integers(0, 255, (3, 3))[
                0
            ]
            plain, mirrored = [], []
            for flip, sample in ((0.0, plain), (1.0, mirrored)):
                monkeypatch.setattr(samples, "config", dataclasses.replace(samples.config, flip=flip))
                values = samples[position]
                x, y = values["detected"][30].round().long().tolist()
                seen = (values["pixel_values"][:, y, x] / 2 + 0.5) * 255
                assert (seen - torch.from_numpy(color)).abs().max() < 25
                sample += [values["pixel_values"], values["detected"], values["landmarks"]]
            assert torch.equal(plain[0].flip(-1), mirrored[0])
            for points, turned in zip(plain[1:], mirrored[1:]):
                assert torch.allclose(turned[:, 0], SIDE - 1 - points[mirror, 0], atol=1e-4)
                assert torch.allclose(turned[:, 1], points[mirror, 1])
                assert turned[36, 0] < turned[45, 0]  # right stays left in the image

    @pytest.mark.parametrize("landmarks", ["detected", "retargeted"])
    def test_key_points_follow_crop_and_mirror(self, samples, monkeypatch, landmarks):
        """Those of the detector, which keep their distance from those of the landmarks; where it has none, the landmarks'."""
        read, offset = type(samples.faces).__getitem__, np.array([1.5, -1.0], np.float32)

        def with_key_points(faces, index):
            face = read(faces, index)
            return dataclasses.replace(face, key_points=five_points(face.landmarks) + offset)

        monkeypatch.setattr(samples.faces, "person", [None] * len(samples.faces))  # the reference is the photo itself
        for position in range(4):
            values = {}
            for flip in (0.0, 1.0):
                config = dataclasses.replace(samples.config, flip=flip, landmarks=landmarks)
                monkeypatch.setattr(samples, "config", config)
                monkeypatch.setattr(type(samples.faces), "__getitem__", read)
                without = samples[position]
                assert torch.allclose(without["key_points"], five_points(without["landmarks"]), atol=1e-4)
                monkeypatch.setattr(type(samples.faces), "__getitem__", with_key_points)
                values[flip] = samples[position]
            plain, turned = values[0.0]["key_points"], values[1.0]["key_points"]
            face = samples.faces[samples.photo(position)]
            detected = values[0.0]["detected"]
            scale = np.ptp(detected[:, 0].numpy()) / np.ptp(face.landmarks[:, 0])
            assert torch.allclose(plain, five_points(detected) + torch.from_numpy(offset * scale), atol=0.02)
            assert torch.allclose(turned[[1, 0, 2, 4, 3], 0], SIDE - 1 - plain[:, 0], atol=1e-4)
            assert torch.allclose(turned[[1, 0, 2, 4, 3], 1], plain[:, 1], atol=1e-4)
            assert turned[0, 0] < turned[1, 0] and turned[3, 0] < turned[4, 0]  # right stays left in the image

    def test_sizes_are_the_files(self, samples):
        """What SDXL is told: the file's size however large the picture is stored, and the crop in the scaled photo."""
        crop = Crop((1024, 682), (4000, 2667), 171, 0, 682, 682, (1024, 1024), mirrored=False)
        assert crop.sizes().tolist() == [2667, 4000, 0, round(171 * 1024 / 682), 1024, 1024]
        mirrored = dataclasses.replace(crop, left=0, mirrored=True)
        assert mirrored.sizes().tolist()[2:4] == [0, round((1024 - 682) * 1024 / 682)]
        face = samples.faces[0]
        stored = dataclasses.replace(face, info={**face.info, "file_size": [400, 300]})
        found = _random_crop(stored, samples.config, (32, 32), np.random.default_rng(0))
        assert found.file_size == (400, 300) and found.size == (tiny_training.SIZE, tiny_training.SIZE)

    def test_a_photo_is_not_enlarged_to_zoom_in(self, samples, monkeypatch):
        """Photos of one, 1.1 and 1.3 sides of the picture, as `facesnap prepare` stores them; all take the same random draws."""
        monkeypatch.setattr(samples, "config", dataclasses.replace(samples.config, zoom=(1.0, 1.3)))
        drawn = []
        for most in (1.0, 1.1, 1.3):
            buffer = io.BytesIO()
            PIL.Image.new("RGB", (round(1.5 * most * 320), round(most * 320))).save(buffer, "PNG")
            face = dataclasses.replace(samples.faces[0], image=buffer.getvalue())
            scales, states = [], []
            for seed in range(50):
                random = np.random.default_rng(seed)
                scales += _random_crop(face, samples.config, (320, 320), random).scale.tolist()
                states.append(random.random())
            assert 1 / most == pytest.approx(min(scales), abs=0.02) and max(scales) == pytest.approx(1, abs=0.02)
            assert max(scales) <= 1 + 1e-9
            drawn.append(states)
        assert drawn[0] == drawn[1] == drawn[2]

    def test_a_damaged_picture_is_named(self, samples, monkeypatch):
        broken = dataclasses.replace(samples.faces[0], image=b"nonsense", info={"identity": "x"})
        monkeypatch.setattr(type(samples.faces), "__getitem__", lambda faces, index: broken)
        with pytest.raises(InputError, match=r"shard-000000.tar: the photo in bytes \d+ to \d+ cannot be read"):
            samples[0]

    def test_shares_of_what_is_left_out(self, samples):
        random = np.random.default_rng(0)
        drawn = [samples._left_out(random) for _ in range(4000)]
        for name, expected in {"without_text": 0.3, "without_identity": 0.15, "without_landmarks": 0.1}.items():
            assert abs(np.mean([item[name].item() for item in drawn]) - expected) < 0.03
        both = np.mean([(item["without_text"] & item["without_identity"]).item() for item in drawn])
        assert abs(both - 0.1) < 0.02


@pytest.fixture(scope="module")
def people_of_all_sizes(tmp_path_factory):
    """Folders of one person each, with 1, 5 and 50 photos."""
    folders = []
    for photos in (1, 5, 50):
        folders.append(tmp_path_factory.mktemp("person"))
        tiny_training.write_faces(folders[-1], people=1, photos=photos)
    return [str(folder) for folder in folders]


class TestBalanced:
    def test_people_count_the_same(self, base, people_of_all_sizes, tmp_path):
        data = {"shards": people_of_all_sizes, "balanced": True, "crops": 2}
        samples = Trainer(tiny_training.config(base, "", tmp_path, data=data)).samples
        positions, person = range(3 * 100), samples.faces.person
        photos = [samples.photo(position) for position in positions]
        assert Counter(person[photo] for photo in photos) == {f"{number}/person0": 100 for number in range(3)}
        assert set(Counter(photo for photo in photos if person[photo] == "2/person0").values()) == {2}
        assert all(len({person[photo] for photo in photos[first : first + 3]}) == 3 for first in positions[::3])
        # both crops of every photo come, also where there is an even number of photos
        assert {samples._crop_number(position, samples.photo(position)) for position in positions} == set(range(112))

        # however they are shared, and wherever a run begins again
        halves = [list(ResumableBatchSampler(10, 20, 3, rank, 2)) for rank in range(2)]
        shared = [samples.photo(position) for pair in zip(*halves) for batch in pair for position in batch]
        assert shared == photos[60:120]
