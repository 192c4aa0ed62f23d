"""dlib's analyzer, on real photos."""

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers.errors import InputError, NoFaceFoundError
from facesnap_diffusers.faces.analyzers import DlibFaceAnalyzer, FaceAnalyzer, default_analyzer
from facesnap_diffusers.faces.choice import FaceChoice
from facesnap_diffusers.faces.detection import find_face


pytestmark = pytest.mark.slow


PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the test photos (faces in several poses) are not in {PHOTOS}")
class TestDlib:
    @pytest.fixture(scope="class")
    def dlib_analyzer(self):
        pytest.importorskip("dlib", reason="needs the extra dlib")
        return DlibFaceAnalyzer()

    @pytest.fixture(scope="class")
    def faces(self, dlib_analyzer):
        names = [path.stem for path in sorted(PHOTOS.glob("*.jpg")) if path.stem != "landscape_no_face"]
        assert len(names) >= 17
        return {name: find_face(PHOTOS / f"{name}.jpg", dlib_analyzer) for name in names}

    def test_follows_the_protocol(self, dlib_analyzer):
        assert isinstance(dlib_analyzer, FaceAnalyzer)
        assert isinstance(default_analyzer(dlib_analyzer.encoder), DlibFaceAnalyzer)

    def test_every_face_is_found(self, faces, dlib_analyzer):
        for name, found in faces.items():
            assert found.embedding.shape == (128,) and found.landmarks.shape == (68, 2), name
            height, width = found.image.shape[:2]
            x, y = found.landmarks[30]
            assert 0 < x < width and 0 < y < height, name
            assert found.encoder == dlib_analyzer.encoder, name

    def test_landscape(self, dlib_analyzer):
        with pytest.raises(NoFaceFoundError, match=r"face_image \(640×380\)"):
            find_face(PHOTOS / "landscape_no_face.jpg", dlib_analyzer)

    def test_the_same_man_is_nearest(self, faces):
        pair = {"man_a_neutral", "man_a_smiling"}
        names = list(faces)
        distances = {
            (a, b): np.linalg.norm(faces[a].embedding - faces[b].embedding)
            for i, a in enumerate(names)
            for b in names[:i]
        }
        same = [distance for names, distance in distances.items() if set(names) == pair]
        others = [distance for names, distance in distances.items() if set(names) != pair]
        assert same[0] < 0.6 and same[0] < min(others)

    def test_rotated_photo_is_turned_upright(self, faces):
        found = faces["man_rotated_90"]
        assert found.image.shape == (409, 330, 3)  # 330 × 409 as stored
        eyes, mouth = found.landmarks[36:48].mean(axis=0), found.landmarks[48:].mean(axis=0)
        assert mouth[1] - eyes[1] > 3 * abs(mouth[0] - eyes[0])

    @pytest.mark.parametrize("turns", [2, 3])
    def test_turned_by_hand(self, turns, faces, dlib_analyzer):
        expected = faces["man_a_neutral"]
        found = find_face(np.rot90(expected.image, turns), dlib_analyzer)
        assert np.array_equal(found.image, expected.image)
        assert np.allclose(found.landmarks, expected.landmarks, atol=2)

    def test_exif(self, faces, dlib_analyzer, tmp_path):
        expected = faces["man_a_neutral"]
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        PIL.Image.fromarray(np.ascontiguousarray(np.rot90(expected.image))).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(find_face(tmp_path / "a.png", dlib_analyzer).landmarks, expected.landmarks)

    def test_head_with_a_large_roll(self, faces, dlib_analyzer):
        """Its landmarks, turned back, are those of the upright head."""
        expected = faces["woman_older"]
        image = PIL.Image.fromarray(expected.image)
        turned = np.array(image.rotate(50, resample=PIL.Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))
        found = find_face(turned, dlib_analyzer)
        center = (np.array(image.size) - 1) / 2
        angle = math.radians(50)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        back = (found.landmarks - center) @ rotation.T + center
        eyes = np.hypot(*(expected.landmarks[36] - expected.landmarks[45]))
        assert np.hypot(*(back - expected.landmarks)[17:].T).mean() < 0.08 * eyes
        assert np.linalg.norm(found.embedding - expected.embedding) < 0.4

    def test_tight_crop(self, faces, dlib_analyzer):
        expected = faces["man_happy"]
        x0, y0 = expected.landmarks.min(axis=0).astype(int)
        x1, y1 = expected.landmarks.max(axis=0).astype(int)
        found = find_face(expected.image[y0 : y1 + 1, x0 : x1 + 1], dlib_analyzer)
        eyes = np.hypot(*(expected.landmarks[36] - expected.landmarks[45]))
        difference = found.landmarks + [x0, y0] - expected.landmarks
        assert np.hypot(*difference.T).mean() < 0.15 * eyes
        assert np.linalg.norm(found.embedding - expected.embedding) < 0.5

    @pytest.mark.parametrize("side", [48, 3000])
    def test_small_and_large_photos(self, side, faces, dlib_analyzer):
        expected = faces["man_a_neutral"]
        resized = PIL.Image.fromarray(expected.image).resize((side, side), PIL.Image.Resampling.LANCZOS)
        found = find_face(resized, dlib_analyzer)
        scale = min(side, 2048) / 250
        eyes = np.hypot(*(expected.landmarks[36] - expected.landmarks[45]))
        assert np.hypot(*(found.landmarks / scale - expected.landmarks).T).mean() < 0.1 * eyes
        assert found.image.shape[0] == min(side, 2048)

    def test_two_women(self, faces, dlib_analyzer):
        first, second = (find_face(PHOTOS / "two_women.jpg", dlib_analyzer, which=i) for i in (0, 1))
        assert abs(first.box[0] - second.box[0]) > 50
        with pytest.raises(InputError, match="shows 2 faces"):
            find_face(PHOTOS / "two_women.jpg", dlib_analyzer, which=2)

    def test_turned_head_in_front_of_a_frontal_bystander(self, faces, dlib_analyzer):
        """The frontal detector sees the bystander alone: that must not end the search."""
        front, bystander = faces["woman_profile"], faces["man_a_neutral"]
        height, width = front.image.shape[:2]
        photo = PIL.Image.new("RGB", (width + 160, height), "gray")
        photo.paste(PIL.Image.fromarray(front.image), (0, 0))
        photo.paste(PIL.Image.fromarray(bystander.image).resize((160, 160)), (width, 0))
        found = find_face(photo, dlib_analyzer)
        assert np.linalg.norm(found.embedding - front.embedding) < 0.4
        assert np.linalg.norm(found.embedding - bystander.embedding) > 0.6
        right = find_face(photo, dlib_analyzer, FaceChoice.from_right())
        assert np.linalg.norm(right.embedding - bystander.embedding) < 0.4

    def test_both_men(self, dlib_analyzer):
        """One looks away: the frontal detector sees the other alone."""
        photo = PHOTOS / "two_men.jpg"
        left, right = (find_face(photo, dlib_analyzer, FaceChoice.from_left(i)) for i in (0, 1))
        assert right.box[0] - left.box[0] > 100
        for x, expected in ((0.0, left), (1.0, right)):
            found = find_face(photo, dlib_analyzer, FaceChoice.nearest_to(x, 0.5))
            assert np.array_equal(found.embedding, expected.embedding)
        for expected in (left, right):
            found = find_face(photo, dlib_analyzer, FaceChoice.most_like(expected.embedding + 0.01))
            assert np.array_equal(found.embedding, expected.embedding)

    @pytest.mark.parametrize("share", [12, 20])
    def test_full_length_photo(self, share, faces, dlib_analyzer):
        """A face that is a small part of the photo's height."""
        expected = faces["woman_older"]
        height = 2000 if share == 20 else 640
        _x0, y0, _x1, y1 = expected.box
        scale = height / share / (y1 - y0)
        small = PIL.Image.fromarray(expected.image).resize([round(scale * 448)] * 2, PIL.Image.Resampling.LANCZOS)
        photo = PIL.Image.new("RGB", (height * 2 // 3, height), "lightgray")
        photo.paste(small, (height // 4, height // 10))
        found = find_face(photo, dlib_analyzer)
        middle = np.array(expected.center) * scale + [height // 4, height // 10]
        assert np.abs(np.array(found.center) - middle).max() < 0.4 * height / share
        assert np.linalg.norm(found.embedding - expected.embedding) < 0.5

    @pytest.mark.parametrize(
        ("cell", "columns", "rows"), [(180, 6, 4), (120, 8, 2)], ids=["24 faces", "16 in a strip"]
    )
    def test_page_of_many_faces(self, cell, columns, rows, faces, dlib_analyzer):
        """Some faces of a page are found at any size; these must not end the search for the others."""
        names = [
            name
            for name in faces
            if name not in ("man_rotated_90", "woman_profile", "woman_rolled_head", "woman_masked")
        ]
        page = PIL.Image.new("RGB", (columns * cell, rows * cell), "white")
        for i in range(columns * rows):
            face = faces[names[i % len(names)]]
            center, half = np.array(face.center), 0.9 * (face.box[2] - face.box[0])
            crop = PIL.Image.fromarray(face.image).crop([*(center - half).tolist(), *(center + half).tolist()])
            place = (i % columns * cell + 5, i // columns * cell + 5)
            page.paste(crop.resize((cell - 10, cell - 10), PIL.Image.Resampling.LANCZOS), place)
        found = dlib_analyzer.analyze(np.array(page))
        cells = {(int(x // cell), int(y // cell)) for x, y in (face.center for face in found)}
        assert len(cells) == len(found) >= columns * rows - 2
