"""From a real photo to an image: detection, recognition, CLIP features, landmarks, generation."""

import PIL.Image
import pytest
import tiny
import torch
from skimage.data import astronaut

from facesnap_diffusers import DlibFaceAnalyzer, FaceIdentity, FaceSnapPipeline, HeadPose, InputError


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photo():
    return PIL.Image.fromarray(astronaut())


@pytest.fixture(scope="module")
def pipe():
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    pipe.set_progress_bar_config(disable=True)
    tiny.add_adapter(pipe)
    return pipe


@pytest.fixture(scope="module")
def person(pipe, photo):
    return pipe.encode_face(photo)


def test_the_analyzer_comes_from_the_adapter(pipe, person):
    assert isinstance(pipe.face_conditioner().analyzer, DlibFaceAnalyzer)
    assert person.face_encoder_id == tiny.FACE_ENCODER and person.face_embeds.shape == (128,)
    assert person.landmarks.shape == (68, 2) and person.photo_size == (512, 512)
    assert person.image_hidden_states.shape == (5, 24)


def test_another_adapter_brings_its_own_analyzer(photo):
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    tiny.add_adapter(pipe, image_encoder_id=None)
    analyzer = pipe.face_conditioner().analyzer
    tiny.add_adapter(pipe, image_encoder_id=None, face_encoder_id="somebody/else")
    with pytest.raises(InputError, match="'somebody/else' is not one of"):
        pipe.encode_face(photo)
    pipe.face_analyzer = own = DlibFaceAnalyzer()
    tiny.add_adapter(pipe, image_encoder_id=None)
    assert pipe.face_conditioner().analyzer is own is not analyzer, "one's own stays"


def test_photo_or_identity_is_the_same(pipe, photo, person, tmp_path):
    images = tiny.generate(pipe, face_image=photo)
    assert torch.equal(images, tiny.generate(pipe, identity=person))
    person.save(tmp_path / "person.safetensors")
    again = FaceIdentity.load(tmp_path / "person.safetensors")
    assert torch.equal(images, tiny.generate(pipe, identity=again))
    assert again.photo_size == person.photo_size


def test_two_photos_of_one_person_are_fused(pipe, photo, person):
    mirrored = photo.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    both = pipe.encode_face([photo, mirrored])
    other = pipe.encode_face(mirrored)
    mean = (person.face_embeds + other.face_embeds) / 2
    torch.testing.assert_close(both.face_embeds / both.face_embeds.norm(), mean / mean.norm())
    torch.testing.assert_close(both.shape, (person.shape + other.shape) / 2)
    assert both.image_hidden_states.shape == (10, 24)
    assert not torch.equal(tiny.generate(pipe, face_image=[photo, mirrored]), tiny.generate(pipe, face_image=photo))
    two = pipe(["a cat"] * 2, face_image=[[photo], [mirrored]], **tiny.CALL).images
    assert len(two) == 2


def test_own_embedding_and_landmarks_need_no_analyzer(pipe, photo, person):
    pipe.face_analyzer = "no analyzer"
    own = pipe.encode_face(photo, embedding=person.face_embeds, landmarks=person.landmarks)
    pipe.face_analyzer = None
    assert torch.equal(tiny.generate(pipe, identity=own), tiny.generate(pipe, identity=person))


def test_landmarks_are_in_pixels_of_the_photo_as_it_is_given(pipe, photo, person):
    """Also of one that is so large that it is scaled down."""
    scale = 6
    large = photo.resize((512 * scale, 512 * scale), PIL.Image.Resampling.BICUBIC)
    points = scale * person.landmarks + (scale - 1) / 2  # pixels' centers are at whole numbers
    same = pipe.encode_face(large, embedding=person.face_embeds, landmarks=points)
    assert same.photo_size == (2048, 2048)
    torch.testing.assert_close(same.landmarks, 4 * person.landmarks + 1.5, atol=1e-2, rtol=0)
    difference = (same.image_hidden_states - person.image_hidden_states).norm() / person.image_hidden_states.norm()
    assert difference < 0.1
    for wrong in (points + 3000, points - 4000, points * 3):
        with pytest.raises(InputError, match=r"landmarks lie outside of face_image \(3072×3072\)"):
            pipe.encode_face(large, embedding=person.face_embeds, landmarks=wrong)


def test_a_pose_image_brings_pose_and_framing_but_not_proportions(pipe, photo, person):
    mirrored = photo.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    someone = tiny.identity()
    points = pipe.predict_landmarks(someone, height=512, width=512, pose_image=mirrored)[0]
    driving = pipe.predict_landmarks(pipe.encode_face(mirrored), height=512, width=512)[0]
    center = (driving.amin(0) + driving.amax(0)) / 2
    assert (points.mean(0) - driving.mean(0)).norm() < 0.2 * (driving.amax(0) - driving.amin(0)).norm()
    assert (center[0] - 512 / 2) * (person.landmarks[:, 0].mean() - 512 / 2) < 0, "the mirrored photo's place"
    assert (points - driving).norm(dim=-1).mean() > 1.0, "someone else's proportions"


def test_where_the_face_goes(pipe, person):
    """By default as in the photo, scaled to cover the image."""
    points = pipe.predict_landmarks(person, height=256, width=256)[0]
    expected = person.landmarks.mean(0) / 2
    torch.testing.assert_close(points[:68].mean(0), expected, atol=3.0, rtol=0)
    wide = pipe.predict_landmarks(person, height=256, width=512, pose=HeadPose())[0]
    assert wide.min() >= 0 and wide[:, 1].max() < 256 and wide[:, 0].max() < 512
