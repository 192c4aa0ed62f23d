"""Training pictures of several sizes: which photo becomes which, in what order, and what of the photo it shows."""

import io
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import tiny
import tiny_training
import torch
from test_resuming import checkpoint, command  # noqa: F401
from tiny_training import assert_same, train

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shards import PreparedFaces, ShardWriter
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training.aspect_buckets import AspectBuckets, read_photo_sizes
from facesnap_diffusers.training.epochs import Epochs
from facesnap_diffusers.training.samples import ResumableBatchSampler, TrainingSamples, _random_crop, collate
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import DataConfig, DropoutConfig, load_config
from facesnap_diffusers.training.validation import to_device, validation_losses


#: Heights and widths of training pictures, and widths and heights of photos, of which each is most like one of them.
SIZES = [(32, 32), (40, 24), (24, 40)]
PHOTOS = [(50, 50), (44, 70), (90, 52)]
TWICE = [(2 * height, 2 * width) for height, width in SIZES]
MARKED = (36, 45, 57)  # outer eye corners and lower lip


@pytest.fixture(scope="module")
def uneven_faces(faces, tmp_path_factory):
    """
    The photos of `faces`, of which each person has one of each size of [`PHOTOS`]: larger ones in which three landmarks are
    spots of light, one in each channel.
    """
    folder, given = tmp_path_factory.mktemp("uneven"), PreparedFaces([str(faces)])
    predictor, settings = load_landmark_predictor(), given.settings[0]
    with ShardWriter(folder, settings) as writer:
        for index in range(len(given)):
            face, (width, height) = given[index], PHOTOS[index % 3]
            corner = np.random.default_rng(index).uniform((2, 2), (width - 32, height - 32))
            landmarks = (face.landmarks + corner).astype(np.float32)
            image = np.stack([spot(landmarks[point], width, height) for point in MARKED], axis=-1)
            info = {"identity": face.info["identity"], "image_format": "png", "file_size": [4 * width, 4 * height]}
            made = make_face(image, landmarks, face.embedding, predictor, settings, info=info)
            writer.add(made, f"{index:03d}")
    return folder


def spot(center, width, height):
    y, x = np.mgrid[:height, :width]
    return (250 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 2)).round().astype(np.uint8)


def find_spots(pixels):
    """The centers of light of a picture's channels, `(3, 2)`, with the center of the top left pixel at (0, 0)."""
    light = (pixels / 2 + 0.5).double().numpy()
    y, x = np.mgrid[: light.shape[1], : light.shape[2]]
    return np.array([[(channel * x).sum(), (channel * y).sum()] / channel.sum() for channel in light])


def samples(folder, step_size=1, **data):
    data = {"resolution": 64, "aspect_ratio_buckets": TWICE, "landmarks": "detected", "zoom": (1.0, 1.0), **data}
    latent_shape = (4, data["resolution"] // 4, data["resolution"] // 4)
    return TrainingSamples(
        PreparedFaces([str(folder)]), DataConfig(shards=[str(folder)], **data), DropoutConfig(), load_landmark_predictor(),
        None, 0, 1000, latent_shape, 3, ("start_noise", "recognition_crop"), step_size=step_size,
    )  # fmt: skip


def config(base_model, folder, output, **changes):
    data = {"aspect_ratio_buckets": [list(size) for size in SIZES], **changes.pop("data", {})}
    return tiny_training.config(base_model, folder, output, data=data, **changes)


class TestOrder:
    COUNTS = (7, 23, 1)

    @pytest.fixture(params=[1, 4, 10])
    def buckets(self, request):
        photos = [PHOTOS[bucket] for bucket, count in enumerate(self.COUNTS) for _ in range(count)]
        np.random.default_rng(0).shuffle(photos)
        return AspectBuckets(photos, SIZES, request.param, seed=5)

    def test_photos_are_in_the_bucket_of_their_proportions(self, buckets):
        assert tuple(buckets.counts) == self.COUNTS
        sizes = {(width, height) for height, width in SIZES}
        for photo in [(64, 64), (60, 100), (1000, 600)]:
            height, width = AspectBuckets([photo], SIZES, 1).size(0)
            assert (width, height) == min(sizes, key=lambda size: abs(np.log(size[0] / size[1] * photo[1] / photo[0])))

    def test_a_step_has_one_size(self, buckets):
        for step in range(40):
            positions = range(step * buckets.step_size, (step + 1) * buckets.step_size)
            assert len({buckets.size(buckets.photo(position)) for position in positions}) == 1

    def test_every_photo_comes_once_before_one_comes_again(self, buckets):
        """In each bucket; and over the epochs all photos come equally often, but for what is left over in a bucket."""
        epochs, streams = 12, {size: [] for size in SIZES}
        steps = sum(epochs * count // buckets.step_size for count in self.COUNTS)
        for position in range(steps * buckets.step_size):
            photo = buckets.photo(position)
            streams[buckets.size(photo)].append(photo)
        for count, size in zip(self.COUNTS, SIZES):
            stream = streams[size]
            assert epochs * count - buckets.step_size < len(stream) <= epochs * count
            for start in range(0, len(stream) - count + 1, count):
                assert len(set(stream[start : start + count])) == count
        first, second = streams[SIZES[1]][:23], streams[SIZES[1]][23:46]
        assert first != second

    def test_alone_they_fill_epochs(self):
        """With samples that need not have one size, as in validation, each photo comes once in an epoch, in any order of sizes."""
        photos = [PHOTOS[number % 3] for number in range(20)]
        buckets = AspectBuckets(photos, SIZES, 1)
        for epoch in range(3):
            order = [buckets.photo(epoch * 20 + place) for place in range(20)]
            assert sorted(order) == list(range(20))
            assert len({photos[index] for index in order[:7]}) > 1

    def test_is_a_function_of_the_position(self, buckets):
        photos = [PHOTOS[number % 3] for number in range(31)]
        fresh = AspectBuckets(photos, SIZES, buckets.step_size, 5)
        order = [fresh.photo(position) for position in range(200)]
        for position in np.random.default_rng(1).permutation(200).tolist():
            assert fresh.photo(position) == order[position]
        assert AspectBuckets(photos, SIZES, buckets.step_size, 5).photo(10**9) == fresh.photo(10**9)
        other = AspectBuckets(photos, SIZES, buckets.step_size, 6)
        assert [other.photo(position) for position in range(200)] != order


class TestBalanced:
    """People with 50, 5 and one photo, of all proportions."""

    PEOPLE = np.random.default_rng(0).permutation([7] * 50 + [20] * 5 + [3])

    @pytest.fixture(params=[1, 4])
    def buckets(self, request):
        photos = [PHOTOS[number % 3] for number in range(56)]
        return AspectBuckets(photos, SIZES, request.param, 5, Epochs(56, self.PEOPLE, 5))

    def test_people_count_the_same(self, buckets):
        """But for what is left over in a bucket; and so do the photos of each."""
        epochs, counts = 200, np.zeros(56, int)
        steps = sum(buckets._steps_before(epochs))
        for position in range(steps * buckets.step_size):
            counts[buckets.photo(position)] += 1
        left_over = 3 * (buckets.step_size - 1)
        assert 3 * epochs - left_over <= counts.sum() <= 3 * epochs
        for person in (7, 20, 3):
            of_person = counts[person == self.PEOPLE]
            assert epochs - left_over <= of_person.sum() <= epochs
            assert np.ptp(of_person) <= buckets.step_size

    def test_samples_take_turns_so(self, uneven_faces):
        drawn = samples(uneven_faces, balanced=True)
        for epoch in range(6):
            people = {drawn.faces.person[drawn.photo(4 * epoch + place)] for place in range(4)}
            assert people == {f"0/person{number}" for number in range(4)}

    def test_a_step_has_one_size_wherever_it_is_looked_up(self, buckets):
        order = [buckets.photo(position) for position in range(240)]
        for step in range(240 // buckets.step_size):
            photos = order[step * buckets.step_size : (step + 1) * buckets.step_size]
            assert len({buckets.size(photo) for photo in photos}) == 1
        for position in np.random.default_rng(1).permutation(240).tolist():
            assert buckets.photo(position) == order[position]


class TestSamples:
    def test_sizes_are_read_from_the_first_bytes(self, uneven_faces, tmp_path):
        faces = PreparedFaces([str(uneven_faces)])
        assert read_photo_sizes(faces) == [PIL.Image.open(io.BytesIO(faces[i].image)).size for i in range(12)]
        shard = next(uneven_faces.glob("*.tar"))
        (tmp_path / shard.name).write_bytes(shard.read_bytes()[: faces.places[5][1] + 600])
        faces.places = [(str(tmp_path / shard.name), start, end) for _, start, end in faces.places]
        with pytest.raises(InputError, match=rf"bytes {faces.places[5][1]} to \d+ cannot be read"):
            read_photo_sizes(faces)

    @pytest.mark.parametrize("flip", [0.0, 1.0])
    @pytest.mark.parametrize(("zoom", "pictures"), [(1.0, TWICE), (1.2, SIZES)])
    def test_landmarks_and_size_conditions_are_those_of_the_picture(self, uneven_faces, flip, zoom, pictures):
        """Landmarks are where their spots are; SDXL's conditions are what the spots say of scale and corner."""
        resolution = pictures[0][0]
        drawn = samples(
            uneven_faces, resolution=resolution, aspect_ratio_buckets=pictures, flip=flip, zoom=(zoom, zoom)
        )
        seen = Counter()
        points = list(MARKED) if flip == 0 else [45, 36, 57]  # of the mirrored face, right is left
        for position in range(12):
            sample, index = drawn[position], drawn.photo(position)
            face = drawn.faces[index]
            _, height, width = sample["pixel_values"].shape
            seen[height, width] += 1
            assert (height, width) == pictures[index % 3]
            for name in ("noise", "encoder_noise", "start_noise"):
                assert sample[name].shape == (4, height // 4, width // 4)

            found = find_spots(sample["pixel_values"])
            assert np.abs(found - sample["detected"][points].numpy()).max() < 0.15
            assert torch.equal(sample["detected"], sample["landmarks"])
            assert (found > -0.5).all() and (found < np.array([width, height]) - 0.5).all()

            (photo_width, photo_height), in_photo = PHOTOS[index % 3], face.landmarks[list(MARKED)].astype(float)
            if flip:
                in_photo[:, 0] = photo_width - 1 - in_photo[:, 0]
            scale = zoom * max(width / photo_width, height / photo_height)
            corners = (in_photo + 0.5) * scale - 0.5 - found
            assert np.ptp(corners, axis=0).max() < 0.15  # the same, and the same way, for all points
            left, top = corners.mean(axis=0)
            sizes = sample["sizes"].tolist()
            assert sizes[:2] == [4 * photo_height, 4 * photo_width] and sizes[4:] == [height, width]
            assert sizes[2] == pytest.approx(top, abs=0.65) and sizes[3] == pytest.approx(left, abs=0.65)
        assert seen == dict.fromkeys(pictures, 4)

    def test_no_picture_is_enlarged(self, uneven_faces):
        """The zoom of a photo ends where its pixels do, those along which the size of its bucket is cut included."""
        pictures, most = [(48, 48), (56, 40), (40, 56)], [50 / 48, 44 / 40, 52 / 40]
        drawn = samples(uneven_faces, resolution=48, aspect_ratio_buckets=pictures, zoom=(1.0, 1.3))
        scales = {number: [] for number in range(3)}
        for position in range(60):
            index, (height, width) = drawn.photo(position), PHOTOS[drawn.photo(position) % 3][::-1]
            random = np.random.default_rng(position)
            crop = _random_crop(drawn.faces[index], drawn.config, drawn._target_size(index), random)
            assert crop.target_size == pictures[index % 3] and crop.height <= height and crop.width <= width
            scales[index % 3] += crop.scale.tolist()
        for number, found in scales.items():
            assert max(found) <= 1
            # but for rounding to a pixel of these small photos
            assert min(found) == pytest.approx(1 / most[number], abs=0.02)
            assert max(found) == pytest.approx(min(1.3 / most[number], 1), abs=0.03)

    def test_processes_and_forward_passes_share_a_step(self, uneven_faces):
        """However a step of 6 samples is divided, it has the same ones, of one size."""
        drawn = samples(uneven_faces, step_size=6)
        whole = [collate([drawn[position] for position in batch]) for batch in ResumableBatchSampler(0, 6, 6)]
        assert len({batch["noise"].shape for batch in whole}) > 1
        for passes, processes in ((1, 2), (3, 1), (1, 3), (3, 2)):
            size = 6 // (passes * processes)
            ranks = [list(ResumableBatchSampler(0, 6 * passes, size, rank, processes)) for rank in range(processes)]
            for step in range(6):
                numbers = range(step * passes, (step + 1) * passes)
                parts = [
                    collate([drawn[p] for p in ranks[rank][number]]) for number in numbers for rank in range(processes)
                ]
                for name in ("pixel_values", "noise", "sizes", "detected", "timestep"):
                    assert torch.equal(torch.cat([part[name] for part in parts]), whole[step][name])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crops=2", "crops are all of one size, aspect_ratio_buckets are not; leave one of them out"),
        ("data.aspect_ratio_buckets=[[64, 64]]", r"aspect_ratio_buckets has \[64, 64\], far from the 32² pixels"),
        ("data.aspect_ratio_buckets=[[36, 28]]", "data.aspect_ratio_buckets.0.0 is 36; it should be a multiple of 8"),
        ("data.aspect_ratio_buckets=[]", "data.aspect_ratio_buckets is \\[\\]"),
        ("data.aspect_ratio_buckets=[[32, 32, 32]]", "data.aspect_ratio_buckets.0 is"),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path, override, message):
    path = tmp_path / "config.yaml"
    path.write_text(config(tmp_path, tmp_path, tmp_path).to_yaml())
    assert load_config(path).data.aspect_ratio_buckets == SIZES
    with pytest.raises(InputError, match=message) as error:
        load_config(path, [override])
    assert "\n" not in str(error.value)


LOSSES = {
    "prediction": {"min_snr": 1e-3},
    "few_step": {
        "mode": "few_step", "steps": 2, "gradient_steps": 2, "every": 1, "reference": "target", "contrastive": 0.1,
    },
}  # fmt: skip


@pytest.mark.slow
class TestRuns:
    @pytest.mark.parametrize(("mode", "balanced"), [("prediction", True), ("few_step", False)])
    def test_resume_is_exact(self, base, uneven_faces, tmp_path, mode, balanced):
        """All losses on pictures of all sizes; a run that is stopped after half of its steps ends with the same bits."""
        changes = {
            "steps": 4, "checkpoint_every": 2, "identity_loss": LOSSES[mode],
            "loss": {"face_weight": 2.0, "align_semantic": 0.1, "align_layout": 0.1},
            "dropout": {"text": 0, "identity": 0, "both": 0, "landmarks": 0}, "data": {"balanced": balanced},
        }  # fmt: skip
        once = train(config(base, uneven_faces, tmp_path / "once", **changes))
        sizes = {once.samples.buckets.size(once.samples.photo(2 * step)) for step in range(4)}
        assert sizes == set(SIZES)
        assert all(np.isfinite(value) for value in once.results.values()) and once.progress.skipped == 0
        assert {"identity", "align_layout"} <= once.results.keys() and once.results["identity_share"] == 1

        tiny_training.reset_accelerate()
        stopped = tiny_training.train_to_first_checkpoint(config(base, uneven_faces, tmp_path / "twice", **changes))
        torch.manual_seed(123)
        train(stopped.config)
        assert_same(*(checkpoint(tmp_path / name / "checkpoint-4") for name in ("once", "twice")))

    def test_validation(self, base, uneven_faces, tmp_path):
        """Losses are the mean over samples of all sizes; the pictures have the sizes of their targets."""
        changes = {
            "data": {"validation": [str(uneven_faces)]}, "steps": 1, "batch_size": 4,
            "validation": {"batches": 3, "images": 4, "judge": "test_validation:MeanColor", "people": 2},
        }  # fmt: skip
        done = train(config(base, uneven_faces, tmp_path, **changes))
        run, objective = done.validation_samples, done.objective
        alone = []
        for position in range(12):
            batch = to_device(collate([run[position]]), torch.device("cpu"))
            batch["timestep"] = torch.tensor([(2 * ((position * 7) % 12) + 1) * 1000 // 24])
            with torch.no_grad():
                alone.append(objective(batch, objective.first_identity_step)["mse"].item())
        measured = validation_losses(objective, run, 3, 4, torch.device("cpu"))
        assert measured["mse"] == pytest.approx(np.mean(alone), rel=1e-4)

        sheet = np.array(PIL.Image.open(tmp_path / "validation/step-0000001.png"))
        shapes = [run[position]["noise"].shape[1:] for position in range(4)]
        height, width = (2 * max(shape[axis] for shape in shapes) for axis in range(2))
        assert len(set(shapes)) > 1 and sheet.shape == (4 * height, 4 * width, 3)
        for row in range(4):
            pixels = ((run[row]["pixel_values"].permute(1, 2, 0) / 2 + 0.5) * 255).round().byte().numpy()
            cell = sheet[row * height : (row + 1) * height, 3 * width :]
            top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
            assert np.array_equal(cell[top : top + pixels.shape[0], left : left + pixels.shape[1]], pixels)
            assert cell.astype(int).sum() == pixels.astype(int).sum()  # black around
        assert 0 < done.results["validation/face_distance"] <= 2

    def test_sdxl(self, uneven_faces, tmp_path):
        pipe = tiny.xl_pipeline()
        pipe.save_pretrained(tmp_path / "base")
        tiny.image_encoder().save_pretrained(tmp_path / "base/face_encoder")
        validation = {"batches": 1, "images": 1, "inference_steps": 1}
        changes = {"steps": 3, "base": {"family": "sdxl"}, "validation": validation}
        changes["data"] = {"validation": [str(uneven_faces)]}
        done = train(config(tmp_path / "base", uneven_faces, tmp_path / "run", **changes))
        assert done.progress.skipped == 0 and all(np.isfinite(value) for value in done.results.values())
        assert (tmp_path / "run/validation/step-0000003.png").is_file()

    def test_two_processes_equal_one_with_twice_the_batch(self, base, uneven_faces, tmp_path, command):  # noqa: F811
        changes = {
            "steps": 4,
            "optimizer": {"learning_rate": 1e-4, "warmup_steps": 0, "epsilon": 1e-4},
            "identity_loss": {"weight": 0},
        }
        one = train(config(base, uneven_faces, tmp_path / "one", batch_size=2, **changes))
        (tmp_path / "config.yaml").write_text(
            config(base, uneven_faces, tmp_path / "two", batch_size=1, **changes).to_yaml()
        )
        run = command(tmp_path / "config.yaml")
        output = run.communicate(timeout=240)[0].decode()
        assert run.returncode == 0, output[-3000:]
        weights = [checkpoint(tmp_path / name / "checkpoint-4")["model.safetensors"] for name in ("one", "two")]
        start = Trainer(config(base, uneven_faces, tmp_path / "start", **changes)).objective.state_dict()
        for name, weight in weights[0].items():
            assert (weight - weights[1][name]).abs().max() <= 1e-5, name
        assert max((weights[0][name] - start[name]).abs().max() for name in start) > 2e-4
        assert one.progress.step == 4

    def test_rare_sizes_are_reported(self, base, uneven_faces, tmp_path, caplog):
        Trainer(config(base, uneven_faces, tmp_path, batch_size=4))
        assert not caplog.text
        tiny_training.reset_accelerate()
        Trainer(config(base, uneven_faces, tmp_path, batch_size=1, gradient_accumulation=5))
        assert "[40, 24] has 4 photos, each of which comes several times in a step of 5" in caplog.text
