"""Pictures and previews without the page, and the code that makes them again."""

import threading

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers.app.code import picture_code
from facesnap_diffusers.app.layout import describe
from facesnap_diffusers.app.photos import SentPhotos, as_data_url
from facesnap_diffusers.app.picture_settings import TWO_FACES, read_settings
from facesnap_diffusers.app.studio import Canceled, in_steps
from facesnap_diffusers.errors import InputError, NoFaceFoundError
from facesnap_diffusers.faces.drawing import draw_landmarks
from facesnap_diffusers.faces.face import Face


pytestmark = pytest.mark.slow


BOX = [0.25, 0.25, 0.75, 0.8]
PERSON = {"sample": "person-02", "pose": [20.0, 0.0, 5.0], "expression": {"jawOpen": 0.4}, "face_box": BOX}


def settings_of(**values):
    nano = {"prompt": "a photo of a person, red shirt", "steps": 2, "guidance_scale": 1.0, "height": 128, "width": 128}
    return read_settings({**nano, "people": [PERSON], **values})


def picture_of_code(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "code", "exec"), {})
    return np.asarray(PIL.Image.open("picture.png"))


def two_people():
    return [
        {**PERSON, "sample": name, "face_box": list(box)} for name, box in zip(("person-00", "person-17"), TWO_FACES)
    ]


@pytest.mark.parametrize("mode", ["text", "image", "inpaint", "scaled", "two"])
def test_the_code_makes_the_picture_again(studio, tmp_path, monkeypatch, mode):
    values, pictures = {"mode": mode}, {}
    if mode == "scaled":
        values = {"identity_scale": 0.5, "negative_prompt": "hat", "guidance_scale": 2.0, "seed": 3}
    elif mode == "two":
        values = {"people": two_people()}
    elif mode != "text":
        pictures = {"start": studio.samples[0].picture}
        pictures["start"].save(tmp_path / "start.png")
        if mode == "inpaint":
            pictures["mask"] = PIL.Image.new("L", (128, 128))
            pictures["mask"].paste(255, (30, 30, 90, 90))
            pictures["mask"].save(tmp_path / "mask.png")
    settings = settings_of(**values)
    sent = [SentPhotos(sample=person.sample) for person in settings.people]
    picture = studio.make(settings, [studio.encode(photos) for photos in sent], **pictures)
    code = picture_code(settings, sent)
    assert np.array_equal(picture_of_code(code, tmp_path, monkeypatch), np.asarray(picture)), code


def test_the_preview_shows_the_landmarks_of_the_call(studio):
    settings = settings_of()
    identity = studio.sample("person-02").identity
    drawn = studio.draw_preview([(identity, settings.people[0])], None, 128, 128)
    points = studio.pipe.predict_landmarks(identity, height=128, width=128, **settings.people[0].steering())
    expected = draw_landmarks(points * 3, 384, 384)[0].permute(1, 2, 0) * 255
    assert np.abs(np.asarray(drawn).astype(int) - expected.round().numpy()).max() <= 1


def test_a_pose_photo_steers_the_preview_and_the_picture(studio):
    other = studio.sample("person-15")
    landmarks = other.identity.landmarks[:68].numpy()
    face = Face(
        image=np.asarray(other.picture),
        box=np.array([*landmarks[:, :2].min(0), *landmarks[:, :2].max(0)], np.float32),
        landmarks=landmarks,
        encoder=other.identity.face_encoder_id,
        embedding=other.identity.face_embeds.numpy(),
        score=1.0,
    )
    identity = studio.sample("person-02").identity
    settings = settings_of(people=[{"sample": "person-02", "uses_pose_photo": True}])
    posed = studio.draw_preview([(identity, settings.people[0])], face, 128, 128)
    own = studio.draw_preview([(identity, settings_of(people=[{}]).people[0])], None, 128, 128)
    assert np.abs(np.asarray(posed).astype(int) - np.asarray(own)).mean() > 0.5
    with pytest.raises(InputError, match="pose photo"):
        studio.make(settings, [identity])


def test_photos_of_one_person_are_fused_and_a_photo_without_a_face_is_named(studio, portraits):
    photos = [as_data_url(portraits[0]), as_data_url(portraits[0].transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))]
    identity = studio.encode(SentPhotos(tuple(photos)))
    assert identity.photo_embeds.shape[0] == 2
    gray = as_data_url(PIL.Image.new("RGB", (300, 300), "gray"))
    with pytest.raises(NoFaceFoundError, match="photo 2"):
        studio.encode(SentPhotos((photos[0], gray)))


def test_scales_of_one_picture_are_nobody_elses(studio):
    identity = studio.sample("person-02").identity
    alone = studio.make(settings_of(), [identity])
    studio.make(settings_of(identity_scale=0.1, landmark_scale=0.2), [identity])
    assert studio.pipe.facesnap_scale == {"identity_scale": 1.0, "landmark_scale": 1.0}
    assert np.array_equal(studio.make(settings_of(), [identity]), alone)


def test_people_at_once_get_their_own_pictures(studio):
    names = ["person-00", "person-15", "person-35"]
    jobs = {name: (settings_of(people=[{**PERSON, "sample": name}]), [studio.sample(name).identity]) for name in names}
    alone = {name: np.asarray(studio.make(*job)) for name, job in jobs.items()}
    together = {}
    threads = [
        threading.Thread(target=lambda name=name, job=job: together.update({name: studio.make(*job)}))
        for name, job in jobs.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[name], alone[name]) for name in names)


def test_steps_are_reported_with_pictures(studio):
    job = settings_of(steps=3), [studio.sample("person-02").identity]
    *steps, picture = studio.steps(*job)
    assert [step[:2] for step in steps] == [(1, 3), (2, 3), (3, 3)]
    # the last step's latents are the picture
    assert np.abs(np.asarray(steps[-1][2]).astype(int) - np.asarray(picture)).max() <= 1


def test_a_picture_ends_when_its_reader_leaves(studio):
    ended = threading.Event()

    def work(on_step):
        try:
            studio.make(settings_of(steps=50), [studio.sample("person-02").identity], on_step=on_step)
        except Canceled:
            ended.set()
            raise

    reports = in_steps(work)
    next(reports)
    reports.close()
    assert ended.wait(20)


@pytest.mark.parametrize(
    ("values", "pictures", "expected"),
    [
        ({"mode": "image"}, {}, "start picture"),
        ({"mode": "image", "strength": 0.1}, {"start": True}, "less than one"),
        ({"mode": "inpaint"}, {"start": True}, "nothing is painted"),
    ],
)
def test_what_is_missing_is_one_line(studio, values, pictures, expected):
    pictures = dict.fromkeys(pictures, studio.samples[0].picture)
    with pytest.raises(InputError, match=expected) as caught:
        studio.make(settings_of(**values), [studio.sample("person-02").identity], **pictures)
    assert "\n" not in describe(caught.value)


def test_errors_of_libraries_are_one_line():
    shown = describe(RuntimeError("CUDA out of memory.\n  Tried to allocate 2 GiB"))
    assert "\n" not in shown and "CUDA out of memory" in shown
