"""The page of the app: its fields, and what happens when they change."""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr

from ..errors import FaceSnapError, InputError, one_line
from .form import (
    AS_IN_PHOTO,
    EXPRESSION_CHOICES,
    EXPRESSION_GROUPS,
    GALLERY_SIZE,
    MODES,
    OWN_SLIDERS,
    Made,
    boxes_for,
    empty_html,
    error_html,
    field_values,
    gallery_html,
    picture_html,
    picture_settings,
    preset_weights,
    progress_html,
)
from .photos import MAX_PHOTOS, SentPhotos, as_data_url, read_picture
from .picture_settings import PictureSettings, without_steering
from .studio import Encoded, Studio


WIDGETS = Path(__file__).parent / "widgets"
SESSION_SECONDS = 3600  # what a visitor sent is forgotten after so long without them

CONSENT = (
    "Only use photos of people who agreed to it, and do not deceive anyone with the pictures. Photos and pictures stay in"
    " memory for this visit: none is written to disk or logged."
)

#: What messages call the photos of each person.
PHOTO_NAMES = ("photo", "photo of the second person")

NO_LANDMARKS = "Choose a photo: the landmarks that steer appear here."
NO_FFRNET = "This adapter has no FFRNet: pose, expression and place follow from the prompt."
ABOUT_NANO = (
    "This is nano, a miniature: it draws rendered people at 128 px, and an avatar of a photo. It knows only words for hair,"
    " skin, eyes, beard, glasses, expression, direction, shirt and background. Photos are made by a checkpoint of full size:"
    " `facesnap app --base ...`."
)

WAITING = '<p class="fs-hint" role="status">Waiting for its turn.</p>'

LOOKING = '<p class="fs-hint" role="status">Looking for the face.</p>'
BUSY = "no picture was made: too many visitors are waiting, or it was stopped; try again"

#: Events that only refresh the preview: answered at once, the last one counts.
LIVE: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}


def widget(name: str, value: Any = None, options: Mapping[str, Any] | None = None, **props: Any) -> gr.HTML:
    """
    One of the page's own fields, from its files in `widgets/`. Its options are written into them: fields that have not been
    shown yet lose what gradio keeps beside the value, when the value changes.
    """
    template, options = WIDGETS / f"{name}.html", options or {}
    scripts = ["scaling", name] if name in ("photos", "start") else [name]
    code = [(WIDGETS / f"{script}.js").read_text("utf-8") for script in scripts]
    texts = {option: html.escape(text) for option, text in options.items() if isinstance(text, str)}
    return gr.HTML(
        value,
        html_template=Template(template.read_text("utf-8")).safe_substitute(texts)
        if template.is_file()
        else "${value}",
        js_on_load="\n".join([f"const options = {json.dumps(options)};", *code]),
        apply_default_css=False,
        **props,
    )


@dataclass(frozen=True)
class PersonFields:
    """The fields of one person."""

    photos: gr.HTML
    message: gr.HTML
    identity: gr.State
    steers_pose: gr.Checkbox
    yaw: gr.Slider
    pitch: gr.Slider
    roll: gr.Slider
    expression: gr.Dropdown
    weights: gr.HTML

    def steering(self) -> dict[str, Any]:
        """The fields that steer, by the names of [`picture_settings`]."""
        names = ("steers_pose", "yaw", "pitch", "roll", "expression", "weights")
        return {name: getattr(self, name) for name in names}


def photo_fields(studio: Studio, number: int) -> tuple[gr.HTML, gr.HTML]:
    """Lays out the photos of one person, and the message below them."""
    samples = [
        {"name": person.name, "picture": as_data_url(person.picture.resize((96, 96)), "JPEG", quality=88)}
        for person in studio.samples
    ]
    photos = widget(
        "photos",
        options={
            "title": "Who" if number == 0 else "Who else",
            "hint": f"Up to {MAX_PHOTOS} photos of one person" + (", or a sample person." if samples else "."),
            "max": MAX_PHOTOS,
            "samples": samples,
        },
        elem_id=f"photos-{number + 1}",
    )
    return photos, message_below(photos)


def steering_fields(photos: gr.HTML, message: gr.HTML, number: int) -> PersonFields:
    """Lays out the pose and the expression of one person."""
    steers_pose = gr.Checkbox(True, label="Set the pose (otherwise as in the photo or start picture)")
    yaw = gr.Slider(-60, 60, 0, step=1, label="Yaw: turn the head, in degrees", elem_id=f"yaw-{number + 1}")
    pitch = gr.Slider(-40, 40, 0, step=1, label="Pitch: look up or down, in degrees")
    roll = gr.Slider(-40, 40, 0, step=1, label="Roll: tilt the head, in degrees")
    expression = gr.Dropdown(
        EXPRESSION_CHOICES, value="neutral", label="Expression", elem_id=f"expression-{number + 1}"
    )
    with gr.Accordion("Expression in detail", open=False):
        weights = widget("expression", {}, {"title": "Strengths of the expressions", "groups": EXPRESSION_GROUPS})
    identity = gr.State(None, time_to_live=SESSION_SECONDS)
    return PersonFields(photos, message, identity, steers_pose, yaw, pitch, roll, expression, weights)


def message_below(field: gr.HTML | None = None) -> gr.HTML:
    """Where errors of a field appear; takes no room without one."""
    elem_id = f"{field.elem_id}-message" if field is not None and field.elem_id else None
    return gr.HTML(elem_id=elem_id, elem_classes="fs-message")


class Page(gr.Blocks):
    """Blocks that keep what visitors send out of messages, which gradio prints."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise gr.Error(f"{len(inputs)} values came for {len(block_fn.inputs)} fields", print_exception=False)


def build_page(studio: Studio, queue_size: int = 32, pictures_at_once: int = 1) -> gr.Blocks:
    r"""
    The page of the app.

    Args:
        studio ([`Studio`]): The model.
        queue_size (`int`): How many visitors may wait for a picture.
        pictures_at_once (`int`): How many pictures are made at the same time.
    """
    defaults, size, steers = studio.defaults, studio.size, studio.follows_landmarks
    about = ABOUT_NANO if studio.base is None else ""
    no_landmarks = NO_LANDMARKS if steers else NO_FFRNET
    with Page(title="FaceSnap", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(
            f"# FaceSnap\nPortraits of a person from one photo and a prompt. {about}\n\n<small>{CONSENT}</small>"
        )
        pose_face = gr.State(None, time_to_live=SESSION_SECONDS)
        made = gr.State([], time_to_live=SESSION_SECONDS)
        marked = gr.State([], time_to_live=SESSION_SECONDS)  # keys of the fields that show an error
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                photos = photo_fields(studio, 0)
                with gr.Row():
                    with gr.Column(min_width=260):
                        with gr.Column(elem_classes="fs-stage"):
                            preview = gr.HTML(empty_html(no_landmarks), elem_id="preview")
                            box = boxes_for(1, defaults.face_box)
                            boxes = widget("boxes", box, elem_classes="fs-overlay", elem_id="boxes", visible=steers)
                        preview_message = gr.HTML(elem_id="preview-message", elem_classes="fs-message")
                        places_faces = gr.Checkbox(True, label="Place the face: drag the box", visible=steers)
                    with gr.Column(min_width=260, visible=steers):
                        first = steering_fields(*photos, 0)
                has_second = gr.Checkbox(False, label="A second person", elem_id="second")
                with gr.Column(visible=False) as second_group:
                    second_photos = photo_fields(studio, 1)
                    with gr.Column(visible=steers):
                        second = steering_fields(*second_photos, 1)
                with gr.Accordion("Pose from a photo", open=False, visible=steers):
                    pose_photo = widget(
                        "photos",
                        options={
                            "title": "Pose photo",
                            "hint": "Anyone's: pose, expression and place are taken, proportions are not.",
                            "max": 1,
                        },
                        elem_id="pose-photo",
                    )
                    pose_message = message_below(pose_photo)
                    uses_pose_photo = gr.Checkbox(False, label="Take pose and expression from this photo")
                with gr.Accordion("Start picture and inpainting", open=False, elem_id="start-section"):
                    mode = gr.Radio(list(MODES), value="text to image", label="Mode", elem_id="mode")
                    start = widget("start", elem_id="start")
                    start_message = message_below(start)
                    strength = gr.Slider(0, 1, 0.6, step=0.05, label="Strength: how much is drawn anew")
                with gr.Accordion("Settings", open=False):
                    negative_prompt = gr.Textbox(
                        defaults.negative_prompt, label="Negative prompt (works with guidance over 1)", max_length=2000
                    )
                    identity_scale, landmark_scale = (
                        gr.Slider(0, max(1.5, studio.scales[name]), studio.scales[name], step=0.05, label=label)
                        for name, label in (("identity_scale", "Identity scale"), ("landmark_scale", "Landmark scale"))
                    )
                    steps = gr.Slider(1, 60, defaults.steps, step=1, label="Steps")
                    guidance_scale = gr.Slider(1, 15, defaults.guidance_scale, step=0.5, label="Guidance scale")
                    landmark_scale.visible = steers
                    schedule = gr.Radio(
                        ["exact", "fast"],
                        value="exact",
                        visible=steers,
                        label="Schedule: fast takes less time in more than eight steps",
                    )
                    width = gr.Slider(64, max(1536, size), size, step=64, label="Width in pixels")
                    height = gr.Slider(64, max(1536, size), size, step=64, label="Height in pixels")
            with gr.Column(scale=2, min_width=320):
                prompt = gr.Textbox(defaults.prompt, label="Prompt", lines=2, max_length=2000, elem_id="prompt")
                with gr.Row():
                    seed = gr.Number(
                        0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, min_width=120, elem_id="seed"
                    )
                    new_seed = gr.Checkbox(False, label="New seed each time", min_width=120)
                with gr.Row():
                    generate = gr.Button("Make the picture", variant="primary", min_width=180, elem_id="generate")
                    stop = gr.Button("Stop", min_width=80, interactive=False, elem_id="stop")
                message = gr.HTML(elem_id="message", elem_classes="fs-message")
                result = gr.HTML(empty_html("The picture appears here."), elem_id="result")
                gr.Markdown("### Pictures of this visit\nChoose one to bring its settings back.")
                gallery = widget("gallery", "", elem_id="gallery")
                with gr.Accordion("Python code of this picture", open=False):
                    code = gr.Code(language="python", label="Code", elem_id="code")

        whole: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "mode": mode,
            "strength": strength,
            "identity_scale": identity_scale,
            "landmark_scale": landmark_scale,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "schedule": schedule,
            "seed": seed,
            "width": width,
            "height": height,
            "places_faces": places_faces,
            "boxes": boxes,
        }
        people = (first, second)
        # where errors go, by the start of their key
        places: dict[str, Any] = {
            **whole,
            "boxes": preview_message,
            "start": start_message,
            "pose_photo": pose_message,
        }
        for number, person in enumerate(people):
            fields: dict[str, Any] = {
                "yaw": person.yaw,
                "pitch": person.pitch,
                "roll": person.roll,
                "pose": person.yaw,
            }
            fields |= {"expression": person.expression, "face_box": preview_message, "photos": person.message}
            places |= {f"people.{number}.{name}": field for name, field in fields.items()}
        # an empty or wrong value is reported by `picture_settings` at its field: gradio's own checks end in a traceback
        for checked in (*whole.values(), *first.steering().values(), *second.steering().values()):
            checked.preprocess = lambda value: value

        # everything but photos: those travel only when they change, and with a picture
        steering_inputs: set[Any] = {*whole.values(), has_second, uses_pose_photo, pose_face}
        for person in people:
            steering_inputs |= {*person.steering().values(), person.identity}

        def read(values: dict[Any, Any], sent: list[SentPhotos]) -> PictureSettings:
            fields = {name: values[field] for name, field in whole.items()}
            steered = [person.steering() for person in people[: len(sent)]]
            persons = [{name: values[field] for name, field in steering.items()} for steering in steered]
            persons[0]["uses_pose_photo"] = values[uses_pose_photo]
            settings = picture_settings(fields, persons, sent)
            return settings if steers else without_steering(settings)

        def refresh(values: dict[Any, Any]) -> tuple[Any, str]:
            """The landmark preview, and what is wrong with the fields that it depends on."""
            count = 2 if values[has_second] else 1
            encoded = [values[person.identity] for person in people[:count]]
            pose = values[pose_face]
            try:
                settings = read({**values, prompt: "-", seed: 0}, [SentPhotos()] * count)
                known = [(who.identity, how) for who, how in zip(encoded, settings.people, strict=True) if who]
                if not known or not steers:
                    return empty_html(no_landmarks), ""
                drawn = studio.draw_preview(known, pose.face if pose else None, settings.height, settings.width)
            except Exception as error:
                return gr.skip(), error_html(describe(error))
            picture = as_data_url(drawn, compress_level=1)  # the fastest: a slider waits for it
            return f'<img alt="Landmarks that steer the picture" src="{picture}">', ""

        shows: dict[str, Any] = {"inputs": steering_inputs, "outputs": [preview, preview_message]}

        def encoder(name: str) -> Callable[[Any], Iterator[tuple[Any, str]]]:
            def encode(value: Any) -> Iterator[tuple[Any, str]]:
                yield gr.skip(), LOOKING
                yield guarded(lambda: studio.encoded(SentPhotos.of(value), name=name))

            return encode

        for number, person in enumerate(people):
            person.photos.sent(
                encoder(PHOTO_NAMES[number]),
                person.photos,
                [person.identity, person.message],
                concurrency_limit=2,
                concurrency_id="photos",
                trigger_mode="always_last",  # a photo chosen while another is encoded counts
                show_progress="hidden",
                api_visibility="private",
            ).then(refresh, **shows, **LIVE)
            person.expression.input(preset_weights, person.expression, person.weights, **LIVE).then(
                refresh, **shows, **LIVE
            )
            person.weights.moved(lambda: OWN_SLIDERS, None, person.expression, **LIVE)
            person.weights.moved(refresh, **shows, **LIVE)
            for field in (person.yaw, person.pitch, person.roll, person.steers_pose):
                field.input(refresh, **shows, **LIVE)
        pose_photo.sent(
            lambda value: (
                *guarded(lambda: studio.found_pose(SentPhotos.of(value))),
                isinstance(value, dict) and bool(value.get("photos")),
            ),
            pose_photo,
            [pose_face, pose_message, uses_pose_photo],
            concurrency_limit=2,
            concurrency_id="photos",
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        ).then(
            # sliders would replace what the photo says
            lambda used: (not used, AS_IN_PHOTO if used else "neutral", {}),
            uses_pose_photo,
            [first.steers_pose, first.expression, first.weights],
            **LIVE,
        ).then(refresh, **shows, **LIVE)
        # a new face stands and looks as that in the start picture, unless the fields say otherwise
        mode.input(
            lambda chosen: (
                chosen == "text to image",
                chosen == "text to image",
                "neutral" if chosen == "text to image" else AS_IN_PHOTO,
                {},
                gr.update(visible=steers and chosen == "text to image"),
            ),
            mode,
            [places_faces, first.steers_pose, first.expression, first.weights, boxes],
            **LIVE,
        ).then(refresh, **shows, **LIVE)
        uses_pose_photo.input(refresh, **shows, **LIVE)
        boxes.moved(refresh, **shows, **LIVE)
        places_faces.input(lambda on: gr.update(visible=on), places_faces, boxes, **LIVE).then(
            refresh, **shows, **LIVE
        )
        width.release(refresh, **shows, **LIVE)
        height.release(refresh, **shows, **LIVE)
        has_second.input(
            lambda second: (
                gr.update(visible=bool(second)),
                True,
                gr.update(value=boxes_for(2 if second else 1, defaults.face_box), visible=bool(steers or second)),
                min(2 * size, 1536) if second and studio.base is None else size,
            ),
            has_second,
            [second_group, places_faces, boxes, width],
            **LIVE,
        ).then(refresh, **shows, **LIVE)

        idle: dict[Any, Any] = {generate: gr.update(interactive=True), stop: gr.update(interactive=False)}

        def without_marks(keys: list[str]) -> dict[Any, Any]:
            """The fields with these keys show no error any more."""
            return {marked: []} | {places[key]: mark(places[key], "") for key in keys}

        def report(error: BaseException) -> dict[Any, Any]:
            """Shows an error below the button, and at its field, if it has one."""
            text = describe(error)
            updates: dict[Any, Any] = {message: error_html(text), **idle}
            key = next((key for key in places if f"{getattr(error, 'key', '')}.".startswith(f"{key}.")), None)
            if key is not None:
                updates |= {places[key]: mark(places[key], text), marked: [key]}
                section = section_of(places[key])
                if section is not None:
                    updates[section] = gr.update(open=True)
            return updates

        def make(values: dict[Any, Any]) -> Iterator[Any]:
            """The picture, with its progress."""
            count = 2 if values[has_second] else 1
            yield {message: "", **without_marks(values[marked])}
            try:
                chosen = random.randrange(2**32) if values[new_seed] else values[seed]
                sent: list[SentPhotos] = []
                known: list[Encoded] = []
                for number, person in enumerate(people[:count]):
                    with errors_of(f"people.{number}.photos"):
                        sent.append(SentPhotos.of(values[person.photos]))
                settings = read({**values, seed: chosen}, sent)
                # of the photos that the fields show now, which may still be waiting to be encoded
                for number, (person, shown) in enumerate(zip(people, sent, strict=False)):
                    with errors_of(f"people.{number}.photos"):
                        who = studio.encoded(shown, values[person.identity], PHOTO_NAMES[number])
                        if who is None:
                            whose = " of the second person" if number else ""
                            raise InputError(f"there is no face{whose} yet; choose a photo or a sample person first")
                        known.append(who)
                pose = started = picture = mask = None
                if values[uses_pose_photo]:
                    with errors_of("pose_photo"):
                        pose = studio.found_pose(SentPhotos.of(values[pose_photo]), values[pose_face])
                if settings.mode != "text" and values[start]:
                    started = values[start]
                    with errors_of("start"):
                        if not isinstance(started, dict):
                            raise InputError("the start picture did not arrive as expected; load the page again")
                        picture = read_picture(started.get("picture"), "the start picture")
                        if started.get("mask"):
                            mask = read_picture(started["mask"], "the mask")
            except Exception as error:
                yield report(error)
                return
            yield {result: progress_html(0, settings.steps, None), seed: settings.seed}
            identities = [who.identity for who in known]
            for step in studio.steps(settings, identities, pose.face if pose else None, picture, mask):
                if isinstance(step, tuple):
                    yield {result: progress_html(*step)}
                elif isinstance(step, BaseException):
                    yield {**report(step), result: empty_html("No picture was made.")}
                else:
                    text = studio.code(settings, sent)
                    thumbnail = as_data_url(_thumbnail(step), "JPEG", quality=85)
                    item = Made(settings, tuple(known), as_data_url(step), thumbnail, text, pose, started)
                    pictures = [*values[made], item][-GALLERY_SIZE:]
                    yield {
                        result: picture_html(item.picture, settings.prompt, settings.seed),
                        made: pictures,
                        gallery: gallery_html(pictures),
                        code: text,
                        **idle,
                    }

        sections = [section for section in map(section_of, places.values()) if section is not None]
        making = generate.click(
            lambda: (WAITING, gr.update(interactive=False), gr.update(interactive=True)),
            None,
            [message, generate, stop],
            **LIVE,
        ).then(
            make,
            {*steering_inputs, first.photos, second.photos, pose_photo, start, new_seed, made, marked},
            list({message, *idle, result, seed, made, gallery, code, marked, *places.values(), *sections}),
            concurrency_limit=pictures_at_once,
            concurrency_id="pictures",
            show_progress="hidden",
            api_visibility="private",
        )

        def end(shown: Any) -> dict[Any, Any]:
            """After the queue was full, or the visitor stopped it. Where the picture was begun, nobody was waiting any more."""
            text = error_html(BUSY) if shown == WAITING else ""
            return {message: text, result: empty_html("Stopped." if not text else "No picture was made."), **idle}

        making.failure(end, message, [message, result, *idle], **LIVE)
        stop.click(
            lambda: {result: empty_html("Stopped."), message: "", **idle},
            None,
            [result, message, *idle],
            cancels=[making],
            queue=False,
            api_visibility="private",
        )

        def bring_back(event: gr.EventData, pictures: list[Made], keys: list[str]) -> dict[Any, Any]:
            """All fields as they were for a picture of the gallery."""
            sent = event._data
            index = sent.get("index") if isinstance(sent, dict) else None
            if type(index) is not int or not 0 <= index < len(pictures):
                return {message: error_html("this picture's settings are no longer kept; make another picture")}
            item = pictures[index]
            fields, persons = field_values(item.settings)
            updates: dict[Any, Any] = dict.fromkeys([first.message, second.message, pose_message], "")
            updates |= {field: fields[name] for name, field in whole.items()}
            updates[has_second] = fields["second"]
            updates[second_group] = gr.update(visible=fields["second"])
            updates[uses_pose_photo] = persons[0]["uses_pose_photo"]
            updates[new_seed] = False
            if not steers:
                updates[places_faces] = True  # which is not shown, and counts for two people
            shown = fields["boxes"] or boxes_for(len(persons), defaults.face_box)
            updates[boxes] = gr.update(value=shown, visible=fields["places_faces"] and (steers or len(persons) > 1))
            updates[result] = picture_html(item.picture, item.settings.prompt, item.settings.seed)
            updates[code] = item.code
            updates[message] = ""
            for person, values, who in zip(people, persons, item.encoded, strict=False):
                updates |= {field: values[name] for name, field in person.steering().items()}
                updates[person.photos] = {"photos": list(who.sent.photos), "sample": who.sent.sample}
                updates[person.identity] = who
            if item.pose is not None:
                updates[pose_photo] = {"photos": list(item.pose.sent.photos), "sample": None}
                updates[pose_face] = item.pose
            if item.start is not None:
                updates[start] = item.start
            for place, unmarked in without_marks(keys).items():
                has_value = place in updates and isinstance(unmarked, dict)
                updates[place] = {**unmarked, "value": updates[place]} if has_value else unmarked
            return updates

        restored: set[Any] = {*whole.values(), has_second, second_group, uses_pose_photo, new_seed, code, message}
        restored |= {pose_photo, pose_face, start, result}
        for person in people:
            restored |= {*person.steering().values(), person.photos, person.identity}
        gallery.pick(bring_back, [made, marked], list(restored | {marked, *places.values()}), **LIVE).then(
            refresh, **shows, **LIVE
        )
    page.queue(max_size=queue_size)
    return page


@contextmanager
def errors_of(key: str) -> Iterator[None]:
    """Gives errors of the package the key of the field that they are about."""
    try:
        yield
    except FaceSnapError as error:
        error.key = key
        raise


def mark(place: Any, text: str) -> Any:
    """The update of a field, or of the place for its message, that shows what is wrong with it; nothing for an empty text."""
    # gradio shows the information on a field as plain text; see app.css for its color
    return error_html(text, role="note") if isinstance(place, gr.HTML) else gr.update(info=text)


def section_of(place: Any) -> gr.Accordion | None:
    """The section of the page, which may be closed, that a field is in."""
    while place is not None and not isinstance(place, gr.Accordion):
        place = place.parent
    return place


def guarded(work: Callable[[], Any]) -> tuple[Any, str]:
    """What some work gives, or `None`; and what is wrong, in one line, as HTML."""
    try:
        return work(), ""
    except Exception as error:
        return None, error_html(describe(error))


def describe(error: BaseException) -> str:
    """An error in one line for the page."""
    if isinstance(error, FaceSnapError):
        # where the settings are in the whole says nothing to a visitor
        return re.sub(r"^settings: (people\.\d+: )?", "", str(error))
    return f"that did not work ({type(error).__name__}: {one_line(error)}); change the settings or load the page again"


def _thumbnail(picture: Any) -> Any:
    small = picture.copy()
    small.thumbnail((160, 160))
    return small
