"""Random calls of a pipeline, each made alone and then from several threads at once."""

import io
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import PIL.Image
import third_party
import tiny
import torch
from peft import LoraConfig, inject_adapter_in_model

from facesnap_diffusers import HeadPose, Person


PROMPTS = ["a cat", "portrait of a king", "oil painting, blue", "a dog in the snow, by night"]
BOXES = ((0.05, 0.2, 0.4, 0.7), (0.6, 0.25, 0.95, 0.75))


@dataclass(frozen=True)
class Call:
    """One call: what differs from call to call, with a seed that a new generator gets each time it is made."""

    seed: int
    arguments: dict

    def __call__(self, pipe) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return pipe(generator=generator, output_type="pt", **self.arguments).images


def random_calls(count: int, seed: int = 0, make_person=tiny.identity, faces=(0, 1, 1, 1), **fixed) -> list[Call]:
    """Calls with a random prompt, person, pose, size, number of steps, guidance and scales; `faces`: of how many people."""
    chosen = random.Random(seed)
    calls = []
    for number in range(count):
        arguments = {
            "prompt": chosen.choice(PROMPTS),
            "num_inference_steps": chosen.choice([1, 2]),
            "guidance_scale": chosen.choice([1.0, 3.0]),
            "height": chosen.choice([32, 48]),
            "width": chosen.choice([32, 64]),
            **fixed,
        }
        people = chosen.choice(faces)
        if people:
            arguments["identity_scale"] = chosen.choice([0.0, 0.4, 1.0])
            arguments["landmark_scale"] = chosen.choice([0.0, 0.7, 1.0])
        if people == 1:
            arguments["identity"] = make_person(seed=chosen.randrange(50))
            if arguments["identity"].landmarks is not None:
                arguments["pose"] = HeadPose(yaw=chosen.choice([-20, 0, 30]))
        if people == 2:
            arguments["people"] = [Person(make_person(seed=chosen.randrange(50)), box) for box in BOXES]
        calls.append(Call(number, arguments))
    return calls


@contextmanager
def switch_interval(seconds: float):
    """Within this context, Python switches threads as often as this."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def wrong_calls(pipes, calls: list[Call], expected: list[torch.Tensor], threads: int, interval: float) -> list[str]:
    """What went wrong with calls made from several threads, call `i` with pipe `i` modulo their number: nothing, at best."""
    start = threading.Barrier(threads)

    def work(number: int) -> list[str]:
        wrong = []
        start.wait()
        for i in range(number, len(calls), threads):
            try:
                image = calls[i](pipes[i % len(pipes)])
            except Exception as error:
                wrong.append(f"call {i}: {type(error).__name__}: {error}")
            else:
                if not torch.equal(image, expected[i]):
                    wrong.append(f"call {i}: differs by {(image - expected[i]).abs().max():.1e}")
        return wrong

    with switch_interval(interval), ThreadPoolExecutor(threads) as pool:
        return [message for messages in pool.map(work, range(threads)) for message in messages]


def one_pipeline(count: int):
    """One pipeline with different people, or none, two of them, poses, prompts, sizes, steps, guidance and scales."""
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    return [pipe], random_calls(count, faces=(0, 1, 1, 2))


def sdxl(count: int):
    pipe = tiny.facesnap(tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    return [pipe], random_calls(count, faces=(0, 1, 2))


def sdxl_in_half_precision(count: int):
    """SDXL's VAE, which the stock pipelines convert to float32 while they decode, and back."""
    pipe = tiny.facesnap(tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    pipe.vae.register_to_config(force_upcast=True)
    pipe.to(torch.float16)
    return [pipe], random_calls(count, faces=(0, 1), num_inference_steps=1)


def pipelines_on_one_unet(count: int):
    """Pipelines by `from_pipe`, with scales of their own."""
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    others = [tiny.facesnap(pipe) for _ in range(2)]
    others[0].set_facesnap_scale(identity_scale={"mid_block": 0.7}, landmark_scale=0.3)
    others[1].set_facesnap_scale(identity_scale=0.2)
    return [pipe, *others], [
        Call(call.seed, {k: v for k, v in call.arguments.items() if k not in ("identity_scale", "landmark_scale")})
        for call in random_calls(count)
    ]


def further_controlnet(count: int):
    base = tiny.sd_pipeline()
    controlnet = third_party.instantid_controlnet(base.unet)
    pipe = tiny.facesnap(tiny.FaceSnapPipeline.from_pipe(base, controlnet=controlnet))
    tiny.add_adapter(pipe)
    return [pipe], random_calls(count, faces=(0, 1, 2), image=torch.rand(1, 3, 48, 48, generator=tiny.seeded()))


def face_id_plus(count: int):
    base = tiny.sd_pipeline()
    pipe = tiny.facesnap(base)
    weights = third_party.faceid_plus(base.unet)
    pipe.load_facesnap_adapter(weights, image_encoder=tiny.image_encoder(), faceid_plus_v2=True)
    calls = random_calls(count, make_person=lambda seed: third_party.faceid_person(True, seed=seed))
    return [pipe], calls


def lora(count: int):
    """A LoRA of the UNet and one of the text encoder, with another scale in each call."""
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    torch.manual_seed(0)
    layers = {"unet": ["to_k", "to_q", "to_v", "to_out.0"], "text_encoder": ["q_proj", "v_proj"]}
    for name, targets in layers.items():
        config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets)
        inject_adapter_in_model(config, getattr(pipe, name))
    calls = random_calls(count)
    for number, call in enumerate(calls):
        call.arguments["cross_attention_kwargs"] = {"scale": [1.0, 0.3, 0.7][number % 3]}
    return [pipe], calls


def stock_ip_adapter(count: int):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    make = third_party._maker(pipe.unet, 0)
    width = pipe.unet.config.cross_attention_dim
    image_proj = {**third_party._linear(make, "proj", 16, 4 * width), **third_party._norm(make, "norm", width)}
    weights = {"image_proj": image_proj, "ip_adapter": third_party.attention(make, pipe.unet, 0)}
    pipe.register_modules(image_encoder=tiny.image_encoder())
    pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    calls = random_calls(count)
    for number, call in enumerate(calls):
        style = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(number % 7))
        if call.arguments["guidance_scale"] > 1:
            style = torch.cat([torch.zeros_like(style), style])
        call.arguments["ip_adapter_image_embeds"] = [style]
    return [pipe], calls


def photos(count: int):
    """Real photos, the same opened picture in several calls: dlib, CLIP and landmarks all run in the call."""
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    from skimage.data import astronaut

    picture = PIL.Image.fromarray(astronaut())
    file = io.BytesIO()
    picture.crop((100, 0, 356, 256)).save(file, format="PNG")
    calls = random_calls(count, faces=(0,))
    for number, call in enumerate(calls):
        call.arguments["face_image"] = PIL.Image.open(file) if number % 3 == 0 else picture
    return [pipe], calls


SETUPS = {
    function.__name__: function
    for function in (
        one_pipeline,
        sdxl,
        sdxl_in_half_precision,
        pipelines_on_one_unet,
        further_controlnet,
        face_id_plus,
        lora,
        stock_ip_adapter,
        photos,
    )
}
