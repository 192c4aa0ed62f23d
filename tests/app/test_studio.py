"""Pictures and previews without the page, and the code that makes them again."""

import ast
import threading
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers import load_nano_pipeline
from facesnap_diffusers.app.code import picture_code
from facesnap_diffusers.app.layout import NO_FFRNET, build_page, describe
from facesnap_diffusers.app.photos import SentPhotos, as_data_url
from facesnap_diffusers.app.picture_settings import TWO_FACES, read_settings, without_steering
from facesnap_diffusers.app.studio import Canceled, Encoded, Studio, in_steps
from facesnap_diffusers.errors import InputError, NoFaceFoundError
from facesnap_diffusers.faces.drawing import draw_landmarks
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.nano.model import nano_folder
from facesnap_diffusers.pipelines.auto import AutoFaceSnapPipeline


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
        box = [0.2512345678, 0.25, 0.7501234567, 0.8]
        person = {**PERSON, "pose": [20.123456789, 0.0, 5.0], "face_box": box}
        values = {"identity_scale": 0.512345678, "negative_prompt": "hat", "guidance_scale": 2.3456789, "seed": 3}
        values["people"] = [person]
    elif mode == "two":
        values = {"people": two_people()}
    elif mode != "text":
        # of another shape than the picture, so that it is cropped
        pictures = {"start": studio.samples[0].picture.resize((201, 128))}
        pictures["start"].save(tmp_path / "start.png")
        if mode == "inpaint":
            pictures["mask"] = PIL.Image.new("L", (201, 128))
            pictures["mask"].paste(255, (30, 30, 90, 90))
            pictures["mask"].save(tmp_path / "mask.png")
    settings = settings_of(**values)
    sent = [SentPhotos(sample=person.sample) for person in settings.people]
    picture = studio.make(settings, [studio.encode(photos) for photos in sent], **pictures)
    code = studio.code(settings, sent)
    assert np.array_equal(picture_of_code(code, tmp_path, monkeypatch), np.asarray(picture)), code


def test_the_code_loads_a_base_model_as_the_app_did():
    base = "C:\\models\\new\"er's"
    sent = [SentPhotos(sample='a"); exit(("')]
    code = picture_code(settings_of(mode="image"), sent, base=base, adapter="my's", dtype="float16", device="cuda:1")
    calls = {
        node.func.attr: node for node in ast.walk(ast.parse(code)) if hasattr(getattr(node, "func", None), "attr")
    }
    load = calls["from_pretrained"]
    assert ast.literal_eval(load.args[0]) == base
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in load.keywords} == {"dtype": "torch.float16"}
    assert ast.literal_eval(calls["load_facesnap_adapter"].args[0]) == "my's"
    assert ast.literal_eval(calls["to"].args[0]) == "cuda:1"
    constants = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert sent[0].sample in constants


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


def test_scales_start_as_the_adapters_authors_recommend(studio):
    pipe = AutoFaceSnapPipeline.from_pipe(studio.pipe)
    config = replace(studio.pipe.facesnap_config, recommended_scales={"identity_scale": 0.8, "landmark_scale": 1.75})
    pipe.register_to_config(facesnap_config=config.to_dict())
    recommending = Studio(pipe, studio.defaults)
    fields = {block.label: block for block in build_page(recommending).blocks.values() if hasattr(block, "label")}
    for label, name in (("Identity scale", "identity_scale"), ("Landmark scale", "landmark_scale")):
        assert fields[label].value == config.scales[name] <= fields[label].maximum
    sent = [SentPhotos(sample="person-02")]
    code = recommending.code(settings_of(identity_scale=1.0, landmark_scale=1.75), sent)
    assert "identity_scale=1.0" in code and "landmark_scale" not in code


@pytest.fixture(scope="module")
def page(studio):
    return build_page(studio)


def handle(page, name, changes):
    """What a handler of the page gives for the values that a browser sends at first, with some changed, by label or id."""
    handler = next(handler for handler in page.fns.values() if handler.name == name)
    values = {}
    for block in handler.inputs:
        key = next((key for key in (getattr(block, "elem_id", None), block.label) if key in changes), None)
        values[block] = block.preprocess(changes[key] if key is not None else block.value)
    return handler.fn(values)


def made(page, changes):
    """The picture and the message of a click on the button, by the id of their fields."""
    changes = {"Steps": 1, "New seed each time": False, "Set the pose (otherwise as in the photo)": True, **changes}
    shown = {}
    for update in handle(page, "make", changes):
        shown |= {block.elem_id: value for block, value in update.items()}
    return shown


def test_a_picture_shows_who_the_photo_field_shows(studio, page):
    first, second = ({"photos": [], "sample": name} for name in ("person-02", "person-15"))
    identity = next(iter(handler for handler in page.fns.values() if handler.name == "encode")).outputs[0]
    before = identity.value
    alone = made(page, {"photos-1": second})["result"]
    try:
        identity.value = Encoded(SentPhotos.of(first), studio.sample("person-02").identity)
        assert made(page, {"photos-1": first})["result"] != alone
        # the second person's photo is still waiting to be encoded
        assert made(page, {"photos-1": second})["result"] == alone
        assert "no face yet" in made(page, {"photos-1": None})["message"]
        assert "no sample person" in made(page, {"photos-1": {"sample": "nobody"}})["message"]
    finally:
        identity.value = before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": None}, "seed is empty"),
        ({"seed": -1}, "seed"),
        ({"Steps": None}, "steps is empty"),
        ({"Width in pixels": None}, "width is empty"),
        ({"Guidance scale": float("inf")}, "guidance scale is not a number"),
        ({"yaw-1": None}, "yaw is empty"),
        ({"yaw-1": 500}, "yaw"),
        ({"mode": "video"}, "mode is not known"),
        ({"boxes": [["a", 0, 1, 1]]}, "a side of the face box"),
        ({"start": "a picture", "mode": "inpainting"}, "start picture"),
    ],
)
def test_what_a_browser_may_send_ends_in_one_line(page, changes, expected):
    shown = made(page, {"photos-1": {"photos": [], "sample": "person-02"}, **changes})
    assert expected in shown["message"] and "result" not in shown
    if "yaw-1" in changes or "Width in pixels" in changes:
        _, message = handle(page, "refresh", changes)
        assert expected in message


def test_an_adapter_without_ffrnet_is_not_steered(studio):
    pipe = load_nano_pipeline()
    pipe.load_facesnap_adapter(nano_folder() / "adapter", parts=["mixer", "identity_attention"])
    plain = replace(studio, pipe=pipe)
    identity = studio.sample("person-02").identity
    with pytest.raises(InputError, match="this adapter has no FFRNet"):
        plain.make(settings_of(), [identity])
    settings = without_steering(settings_of())
    assert plain.make(settings, [identity]).size == (128, 128)
    assert "HeadPose" not in plain.code(settings, [SentPhotos(sample="person-02")])
    people = without_steering(settings_of(people=two_people())).people
    assert [person.face_box for person in people] == list(TWO_FACES)

    blocks = build_page(plain).blocks.values()
    yaw = next(block for block in blocks if block.elem_id == "yaw-1")
    assert not yaw.parent.visible or not yaw.parent.parent.visible
    assert NO_FFRNET in next(block for block in blocks if block.elem_id == "preview").value
