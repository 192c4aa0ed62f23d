"""When identity attention and FFRNet work in the course of a call."""

import copy

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)

from facesnap_diffusers import FaceSnapImg2ImgPipeline, FaceSnapSchedule, InputError, Person


pytestmark = pytest.mark.slow


SIZE = {"height": tiny.SIZE, "width": tiny.SIZE}
#: With 25 steps: each of the first fifth, then at every fifth.
FAST_STEPS = [0, 1, 2, 3, 4, 9, 14, 19, 24]


@pytest.fixture(scope="module", params=["sd", "xl"])
def pipe(request):
    pipe = tiny.facesnap(tiny.sd_pipeline() if request.param == "sd" else tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    return pipe


def generate(pipe, **kwargs):
    call = {"identity": tiny.identity(), "generator": tiny.seeded(), "output_type": "pt", **SIZE, **kwargs}
    return pipe("a cat", **call).images


def rounds(pipe, **kwargs):
    """In which rounds of the loop FFRNet and identity attention run, and FFRNet's batch."""
    number, ffrnet, identity, batches = 0, [], [], set()

    def before_unet(module, args):
        nonlocal number
        number += 1

    layer = pipe.unet.get_submodule(next(iter(pipe.identity_attention.config.layers)))
    handles = [
        pipe.ffrnet.register_forward_pre_hook(
            lambda module, args: [ffrnet.append(number), batches.add(len(args[0]))].clear()
        ),
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: identity.append(number - 1) if kwargs["ip_hidden_states"].scales else None,
            with_kwargs=True,
        ),
        pipe.unet.register_forward_pre_hook(before_unet),
    ]
    try:
        images = generate(pipe, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    assert images.isfinite().all()
    return ffrnet, identity, batches


def test_exact_is_the_default_bit_for_bit(pipe):
    expected = generate(pipe, num_inference_steps=3)
    for schedule in ("exact", FaceSnapSchedule()):
        assert torch.equal(generate(pipe, num_inference_steps=3, facesnap_schedule=schedule), expected)
    assert not torch.equal(generate(pipe, num_inference_steps=3, facesnap_schedule="fast"), expected)


def test_without_guidance_the_conditional_half_is_all(pipe):
    schedule = FaceSnapSchedule(landmarks_on_unconditional=False)
    call = {"num_inference_steps": 3, "guidance_scale": 1.0}
    assert torch.equal(generate(pipe, facesnap_schedule=schedule, **call), generate(pipe, **call))


def test_fast_computes_ffrnet_when_time_has_passed(pipe):
    ffrnet, identity, batches = rounds(pipe, num_inference_steps=25, facesnap_schedule="fast")
    assert ffrnet == FAST_STEPS and identity == list(range(25)) and batches == {1}


@pytest.mark.parametrize(
    ("schedule", "computed"), [(FaceSnapSchedule(landmarks_on_unconditional=False), range(25)), ("fast", FAST_STEPS)]
)
def test_is_exact_with_residuals_of_the_conditional_half_that_last(pipe, schedule, computed):
    number, last = 0, None

    def of_the_schedule(module, args, residuals):
        """In an exact call, which computes both halves at every step."""
        nonlocal number, last
        if number in computed:
            last = [
                torch.cat([torch.zeros_like(half), half])
                for half in (item.chunk(2)[1] for item in [*residuals[0], residuals[1]])
            ]
        number += 1
        *down, mid = [item.clone() for item in last]
        return down, mid

    handle = pipe.ffrnet.register_forward_hook(of_the_schedule)
    try:
        expected = generate(pipe, num_inference_steps=25)
    finally:
        handle.remove()
    assert number == 25
    image = generate(pipe, num_inference_steps=25, facesnap_schedule=schedule)
    tiny.assert_same_image(image, expected, atol=1e-4)
    assert (image - generate(pipe, num_inference_steps=25)).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_few_steps_compute_it_at_each(pipe, steps):
    assert rounds(pipe, num_inference_steps=steps, facesnap_schedule="fast")[0] == list(range(steps))


@pytest.mark.parametrize(
    ("scheduler", "options", "steps", "count"),
    [
        (PNDMScheduler, {"skip_prk_steps": True}, 8, 9),
        (PNDMScheduler, {"skip_prk_steps": False}, 8, 17),
        (HeunDiscreteScheduler, {}, 5, 9),
        (KDPM2DiscreteScheduler, {}, 8, 15),  # between two steps it has a timestep of its own
    ],
)
def test_few_steps_of_more_rounds(scheduler, options, steps, count):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    assert rounds(pipe, num_inference_steps=steps, facesnap_schedule="fast")[0] == list(range(count))


def test_few_steps_before_denoising_end():
    pipe = tiny.facesnap(tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    call = {"facesnap_schedule": "fast", "num_inference_steps": 20}
    assert rounds(pipe, denoising_end=0.4, **call)[0] == list(range(8))
    assert len(rounds(pipe, denoising_end=0.8, **call)[0]) < 16


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.3, 0.7), (0.1, 1.0)])
@pytest.mark.parametrize("steps", [5, 7])
def test_windows_mean_the_same_for_both_parts(pipe, start, end, steps):
    schedule = FaceSnapSchedule(start, end, landmark_start=start, landmark_end=end)
    ffrnet, identity, _ = rounds(pipe, num_inference_steps=steps, facesnap_schedule=schedule)
    assert identity == ffrnet != []


def test_a_landmark_picture_that_a_callback_changes_in_place_counts(pipe):
    def black(in_place):
        def change(pipe, step, timestep, values):
            return {"image": values["image"].zero_() if in_place else torch.zeros_like(values["image"])}

        return generate(
            pipe, num_inference_steps=3, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["image"]
        )

    assert torch.equal(black(in_place=True), black(in_place=False))
    assert not torch.equal(black(in_place=True), generate(pipe, num_inference_steps=3))


def test_windows_are_each_part_s_own(pipe):
    schedule = FaceSnapSchedule(identity_start=0.25, identity_end=0.75, landmark_end=0.5)
    ffrnet, identity, batches = rounds(pipe, num_inference_steps=8, facesnap_schedule=schedule)
    assert ffrnet == [0, 1, 2, 3] and identity == [2, 3, 4, 5] and batches == {2}


def test_with_a_further_controlnet(pipe):
    torch.manual_seed(5)
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    for parameter in controlnet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    both = type(pipe).from_pipe(pipe, controlnet=controlnet)
    both.set_progress_bar_config(disable=True)
    calls = []
    handle = controlnet.register_forward_pre_hook(lambda module, args: calls.append(1))
    call = {"image": torch.rand(1, 3, 64, 64, generator=tiny.seeded()), "num_inference_steps": 25}
    ffrnet, *_ = rounds(both, facesnap_schedule="fast", control_guidance_end=0.4, **call)
    handle.remove()
    assert ffrnet == FAST_STEPS and len(calls) == 10
    # what is used again must not have the other's residuals added: at scale 0 it is as if there were none
    call |= {"facesnap_schedule": "fast", "num_inference_steps": 12}
    silent = generate(both, controlnet_conditioning_scale=0.0, **call)
    call.pop("image")
    torch.testing.assert_close(silent, generate(pipe, **call), atol=1e-5, rtol=0)


def test_people_and_several_images(pipe):
    people = [Person(tiny.identity(1), (0.0, 0.2, 0.4, 0.8)), Person(tiny.identity(2), (0.6, 0.2, 1.0, 0.8))]
    call = {"num_inference_steps": 25, "facesnap_schedule": "fast"}
    assert rounds(pipe, identity=None, people=people, **call)[0] == FAST_STEPS
    ffrnet, _, batches = rounds(pipe, num_images_per_prompt=2, **call)
    assert ffrnet == FAST_STEPS and batches == {2}


def test_image_to_image_and_second_order_samplers():
    pipe = tiny.facesnap(tiny.sd_pipeline(), FaceSnapImg2ImgPipeline)
    tiny.add_adapter(pipe)
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    call = {"image": picture, "facesnap_schedule": FaceSnapSchedule(landmark_interval=0.5, identity_end=0.5)}
    ffrnet, identity, _ = rounds(pipe, strength=0.5, num_inference_steps=24, **call)
    assert identity == list(range(6)) and ffrnet[:6] == list(range(6)) and len(ffrnet) < 9, "12 of 24 steps"
    for scheduler in (HeunDiscreteScheduler, EulerDiscreteScheduler):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        ffrnet, _, _ = rounds(pipe, strength=0.8, num_inference_steps=20, **call)
        assert ffrnet[0] == 0 and len(ffrnet) < 31


def test_guidance_that_a_callback_ends(pipe):
    """The unconditional half is gone from then on: what is left is the conditional one."""
    names = ["prompt_embeds"]
    if hasattr(pipe, "text_encoder_2"):
        names += ["add_text_embeds", "add_time_ids"]

    def callback(call, step, timestep, tensors):
        if step == 4:
            call._guidance_scale = 1.0
            return {name: tensors[name].chunk(2)[1] for name in names}
        return {}

    call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names, "num_inference_steps": 12}
    for schedule in ("exact", "fast"):
        assert generate(pipe, facesnap_schedule=schedule, **call).isfinite().all()


def test_keys_and_values_of_the_person_are_computed_once(pipe):
    """As long as the loop gives the UNet the same embeddings: what a callback changes, in place or not, counts."""
    projections = pipe.identity_attention.projections.values()
    computed = []
    handles = [
        linear.register_forward_hook(lambda *_: computed.append(1))
        for projection in projections
        for linear in (projection.to_k, projection.to_v)
    ]

    def run(change):
        computed.clear()
        callback = {} if change is None else {"callback_on_step_end": change}
        image = generate(
            pipe, num_inference_steps=4, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], **callback
        )
        return image, len(computed) / len(handles)

    def every_step_anew(pipe, step, timestep, values):
        return {"prompt_embeds": values["prompt_embeds"].clone()}

    def halved(pipe, step, timestep, values):
        return {"prompt_embeds": values["prompt_embeds"] * (0.5 if step == 1 else 1.0)}

    def halved_in_place(pipe, step, timestep, values):
        values["prompt_embeds"].mul_(0.5 if step == 1 else 1.0)
        return {}

    try:
        (once, rounds_once), (anew, rounds_anew) = run(None), run(every_step_anew)
        assert (rounds_once, rounds_anew) == (1, 4)
        assert torch.equal(once, anew)
        changed, _ = run(halved)
        assert not torch.equal(changed, once)
        assert torch.equal(run(halved_in_place)[0], changed)
    finally:
        for handle in handles:
            handle.remove()


def test_each_adapter_begins_with_exact(pipe, tmp_path):
    pipe.save_facesnap_adapter(tmp_path)
    pipe = type(pipe).from_pipe(pipe)
    pipe.set_facesnap_schedule("fast")
    pipe.load_facesnap_adapter(tmp_path)
    assert pipe.facesnap_schedule == FaceSnapSchedule()


def test_a_schedule_without_a_face_is_refused(pipe):
    with pytest.raises(InputError, match="facesnap_schedule= is about a face; pass face_image= or identity= too"):
        pipe("a person", facesnap_schedule="fast")


def test_schedule_of_a_pipeline(pipe):
    pipe = copy.copy(pipe)
    pipe.set_facesnap_schedule("fast")
    assert pipe.facesnap_schedule == FaceSnapSchedule(landmark_interval=0.2, landmarks_on_unconditional=False)
    assert type(pipe).from_pipe(pipe).facesnap_schedule == pipe.facesnap_schedule
    call = {"num_inference_steps": 3}
    assert torch.equal(generate(pipe, **call), generate(pipe, facesnap_schedule="fast", **call))
    for wrong in ("slow", 3, None):
        with pytest.raises(InputError, match="schedule must be one of exact, fast"):
            pipe.set_facesnap_schedule(wrong)
    with pytest.raises(InputError, match="landmark_interval is 2.0"):
        FaceSnapSchedule(landmark_interval=2.0)
    with pytest.raises(InputError, match="identity_start must be smaller"):
        FaceSnapSchedule(identity_start=0.5, identity_end=0.5)
