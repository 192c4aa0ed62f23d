"""InstantID checkpoints against the computation of its public pipeline, written down from first principles."""

import dataclasses
import json

import numpy as np
import pytest
import third_party
import tiny
import torch
from diffusers import ControlNetModel
from faces.test_key_points import authors_drawing
from safetensors.torch import load_file, save_file

from facesnap_diffusers import (
    AdapterError,
    FaceEncoderMismatchError,
    FaceIdentity,
    HeadPose,
    Person,
    load_landmark_predictor,
)
from facesnap_diffusers.faces.key_points import draw_key_points, five_points
from facesnap_diffusers.steering import Steering


CALL = {**tiny.CALL, "num_inference_steps": 3, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def base():
    return tiny.xl_pipeline()


@pytest.fixture(scope="module")
def repo(base, tmp_path_factory):
    """Laid out as InstantX/InstantID: a `.bin` and a ControlNet that takes the pooled text as it comes."""
    folder = tmp_path_factory.mktemp("instantid")
    torch.save(third_party.instantid(base.unet), folder / "ip-adapter.bin")
    third_party.instantid_controlnet(base.unet).save_pretrained(folder / "ControlNetModel")
    return folder


def instantid(base, repo):
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(repo)
    return pipe


def resampler(p, x, heads):
    """arXiv 2308.06721's resampler over the face embedding as a single token (batch, 1, 512)."""

    def linear(name, value):
        return value @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def norm(name, value):
        value = value - value.mean(-1, keepdim=True)
        value = value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return value * p[f"{name}.weight"] + p[f"{name}.bias"]

    def split(value):
        return value.unflatten(-1, (heads, -1)).transpose(1, 2)

    latents, x = p["latents"].repeat(len(x), 1, 1), linear("proj_in", x)
    for i in range(4):
        source, queries = norm(f"layers.{i}.0.norm1", x), norm(f"layers.{i}.0.norm2", latents)
        query = split(linear(f"layers.{i}.0.to_q", queries))
        key, value = linear(f"layers.{i}.0.to_kv", torch.cat([source, queries], 1)).chunk(2, -1)
        weights = (query @ split(key).mT / query.shape[-1] ** 0.5).softmax(-1)
        latents = latents + linear(f"layers.{i}.0.to_out", (weights @ split(value)).transpose(1, 2).flatten(2))
        inner = linear(f"layers.{i}.1.1", norm(f"layers.{i}.1.0", latents))
        gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        latents = latents + linear(f"layers.{i}.1.3", gelu)
    return norm("norm_out", linear("proj_out", latents))


class DecoupledAttention:
    """softmax(q kᵀ) v over the text plus `scale` times the same over the identity tokens, which follow the text."""

    def __init__(self, to_k_ip, to_v_ip, num_tokens, scale):
        self.to_k_ip, self.to_v_ip, self.num_tokens, self.scale = to_k_ip, to_v_ip, num_tokens, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        def attention(key, value):
            query, key, value = (
                tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for tensor in (attn.to_q(hidden_states), key, value)
            )
            weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
            return (weights @ value).transpose(1, 2).flatten(2)

        text = encoder_hidden_states[:, : -self.num_tokens]
        face = encoder_hidden_states[:, -self.num_tokens :]
        out = attention(attn.to_k(text), attn.to_v(text))
        out = out + self.scale * attention(face @ self.to_k_ip.T, face @ self.to_v_ip.T)
        return attn.to_out[0](out)


@torch.no_grad()
def by_hand(base, repo, embedding, key_point_image, ip_scale, controlnet_scale):
    """The loop of InstantID's pipeline."""
    checkpoint = torch.load(repo / "ip-adapter.bin", weights_only=True)
    controlnet = ControlNetModel.from_pretrained(repo / "ControlNetModel")
    unet, scheduler, vae = base.unet, base.scheduler, base.vae
    text, negative_text, pooled, negative_pooled = base.encode_prompt("a cat", device="cpu", num_images_per_prompt=1)
    embeds = torch.from_numpy(embedding)[None, None]
    face = resampler(checkpoint["image_proj"], torch.cat([torch.zeros_like(embeds), embeds]), heads=2)
    prompt = torch.cat([torch.cat([negative_text, text]), face], dim=1)
    conditions = {
        "text_embeds": torch.cat([negative_pooled, pooled]),
        "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]]).float().repeat(2, 1),
    }
    own = dict(unet.attn_processors)
    attention = {}
    for number, name in enumerate(unet.attn_processors):
        attention[name] = own[name]
        if name.endswith("attn2.processor"):
            weights = [checkpoint["ip_adapter"][f"{number}.{key}.weight"] for key in ("to_k_ip", "to_v_ip")]
            attention[name] = DecoupledAttention(*weights, face.shape[1], ip_scale)
    unet.set_attn_processor(attention)
    try:
        scheduler.set_timesteps(CALL["num_inference_steps"])
        latents = torch.randn(1, 4, 32, 32, generator=tiny.seeded()) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents, latents]), t)
            down, mid = controlnet(
                both,
                t,
                encoder_hidden_states=face,
                controlnet_cond=torch.cat([key_point_image] * 2),
                conditioning_scale=controlnet_scale,
                added_cond_kwargs=conditions,
                return_dict=False,
            )
            noise = unet(
                both,
                t,
                encoder_hidden_states=prompt,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                added_cond_kwargs=conditions,
            ).sample
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + CALL["guidance_scale"] * (conditional - unconditional)
            latents = scheduler.step(noise, t, latents).prev_sample
    finally:
        unet.set_attn_processor(own)
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(("ip_scale", "controlnet_scale"), [(0.8, 0.8), (1.0, 0.3), (0.0, 0.5)])
def test_equals_the_public_pipeline(base, repo, ip_scale, controlnet_scale):
    """From a photo on both sides, of which the analyzer's answer is fixed."""
    photo, face = third_party.photo_and_face("insightface/glintr100")
    pipe = instantid(base, repo)
    assert pipe.facesnap_scale == {"identity_scale": 0.8, "landmark_scale": 0.8}  # those of its authors
    if (ip_scale, controlnet_scale) != (0.8, 0.8):
        pipe.set_facesnap_scale(identity_scale=ip_scale, landmark_scale=controlnet_scale)
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    image = pipe("a cat", face_image=photo, generator=tiny.seeded(), **CALL).images

    drawn = authors_drawing((64, 64), face.key_points)
    picture = torch.from_numpy(drawn).permute(2, 0, 1)[None].float() / 255
    expected = by_hand(base, repo, face.embedding, picture, ip_scale, controlnet_scale)
    plain = base("a cat", generator=tiny.seeded(), **CALL).images
    assert (expected - plain).abs().max() > 1e-2
    tiny.assert_same_image(image, expected, atol=1e-4)


def test_the_picture_of_key_points_is_the_authors_to_the_bit(base, repo):
    """Unsteered from the detector's own points; in 64 poses from those that follow; given by the caller as they are."""
    photo, face = third_party.photo_and_face("insightface/glintr100", size=512)
    pipe = instantid(base, repo)
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    conditioner = pipe.face_conditioner()
    identity = pipe.encode_face(photo)
    own = conditioner.drawn_points([identity], Steering(), 1024, 1024)
    torch.testing.assert_close(own, 2 * torch.from_numpy(face.key_points)[None], atol=1e-3, rtol=0)
    poses = [
        HeadPose(yaw, pitch, roll)
        for yaw in (-45, -15, 15, 45)
        for pitch in (-20, -5, 5, 20)
        for roll in (-30, -10, 10, 30)
    ]
    assert len(poses) == 64
    points = conditioner.drawn_points([identity], Steering(pose=poses), 1024, 1024)
    for five in torch.cat([points, own]):
        drawn = conditioner.landmark_picture(five[None], 1024, 1024)[0]
        expected = authors_drawing((1024, 1024), five.numpy())
        assert np.array_equal((drawn.permute(1, 2, 0) * 255).round().byte().numpy(), expected)
    given = torch.tensor([[20.0, 25], [40, 25], [30, 35], [22, 45], [38, 45]])
    images = [
        pipe("a cat", identity=identity, landmarks=given + shift, generator=tiny.seeded(), **CALL).images
        for shift in (0, 12)
    ]
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_what_the_detector_saw_follows_the_face(base, repo):
    """The key points differ from the landmarks' five by the same vector, turned with the head."""
    photo, face = third_party.photo_and_face("insightface/glintr100", size=512)
    pipe = instantid(base, repo)
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    identity = pipe.encode_face(photo)
    predictor = load_landmark_predictor()
    own = predictor.encode(identity.landmarks[None])
    rebuilt = five_points(predictor.decode(own))[0]
    yaw, pitch, roll = own.rotation[0].tolist()
    missed = torch.from_numpy(face.key_points) - rebuilt
    assert missed.norm(dim=-1).mean() > 1
    call = {"height": 512, "width": 512}
    steering = Steering(pose=HeadPose(yaw, pitch, roll + 40))
    points = pipe.face_conditioner().drawn_points([identity], steering, **call)[0]
    target = dataclasses.replace(own, rotation=own.rotation + torch.tensor([[0.0, 0.0, 40.0]]))
    carried = points - five_points(predictor.decode(target))[0]
    # turned by 40° with the head, and of one share: what may be noise stays behind
    cosine, sine = np.cos(np.radians(40)), np.sin(np.radians(40))
    turns = [missed @ torch.tensor([[cosine, sign * sine], [-sign * sine, cosine]]).float() for sign in (1, -1)]
    shares = [float((carried * turned).sum() / turned.square().sum()) for turned in turns]
    share, turned = max(zip(shares, turns), key=lambda pair: pair[0])
    assert 0.5 < share < 1
    torch.testing.assert_close(carried, share * turned, atol=1e-2, rtol=0)


def test_key_points_are_saved_with_an_identity(base, repo, tmp_path):
    photo, face = third_party.photo_and_face("insightface/glintr100")
    pipe = instantid(base, repo)
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    pipe.encode_face(photo).save(tmp_path / "identity.safetensors")
    loaded = FaceIdentity.load(tmp_path / "identity.safetensors")
    assert np.array_equal(loaded.key_points.numpy(), face.key_points)


def test_pose_is_steered_and_the_proportions_stay_the_references(base, repo):
    pipe = instantid(base, repo)
    mean = third_party.instantid_person()
    center = mean.landmarks.mean(0)
    wide = dataclasses.replace(mean, landmarks=(mean.landmarks - center) * torch.tensor([1.15, 1.0]) + center)
    call = {"face_box": (0.2, 0.2, 0.8, 0.8), "height": 512, "width": 512}

    def width_to_height(identity, pose):
        points = five_points(pipe.predict_landmarks(identity, pose=pose, **call))[0]
        return float((points[1, 0] - points[0, 0]) / (points[3:, 1].mean() - points[:2, 1].mean()))

    for pose in (HeadPose(), HeadPose(yaw=25)):
        assert width_to_height(wide, pose) > 1.05 * width_to_height(mean, pose)
    assert width_to_height(mean, HeadPose(yaw=25)) < 0.97 * width_to_height(mean, HeadPose())
    images = [
        pipe("a cat", identity=third_party.instantid_person(), pose=pose, generator=tiny.seeded(), **CALL).images
        for pose in (HeadPose(), HeadPose(yaw=40))
    ]
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_key_points_look_as_instantid_draws_them():
    """OpenCV's filled polygons and circles, which its script calls, with the same sizes."""
    cv2 = pytest.importorskip("cv2")
    points = tiny.face_points()
    points = torch.cat([points, points[[36, 36, 45, 45]]])[None] * 8
    five = five_points(points)[0].numpy()
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    expected = np.zeros((800, 960, 3), dtype=np.uint8)
    for i in (0, 1, 3, 4):
        x, y = five[[i, 2]].T
        axes = (int(np.hypot(x[0] - x[1], y[0] - y[1]) / 2), 4)
        angle = np.degrees(np.arctan2(y[0] - y[1], x[0] - x[1]))
        polygon = cv2.ellipse2Poly((int(x.mean()), int(y.mean())), axes, int(angle), 0, 360, 1)
        cv2.fillConvexPoly(expected, polygon, colors[i])
    expected = (expected * 0.6).astype(np.uint8)
    for (x, y), color in zip(five, colors):
        cv2.circle(expected, (int(x), int(y)), 10, color, -1)

    image = (draw_key_points(points, 800, 960)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert 2000 < expected.any(-1).sum() < 20000
    assert np.array_equal(image, expected)


def test_embeddings_need_their_length(base, repo):
    pipe = instantid(base, repo)
    with pytest.raises(FaceEncoderMismatchError, match="normalize=False"):
        pipe("a cat", identity=third_party.instantid_person(length=1.0), generator=tiny.seeded(), **CALL)


def test_several_people(base, repo):
    pipe = instantid(base, repo)
    boxes = [(0.05, 0.2, 0.45, 0.8), (0.55, 0.2, 0.95, 0.8)]
    one, other = third_party.instantid_person(), third_party.instantid_person(seed=6)

    def image(*who):
        people = [Person(identity, box) for identity, box in zip(who, boxes)]
        return pipe("a cat", people=people, generator=tiny.seeded(), **CALL).images

    both = image(one, other)
    for changed in (image(other, other), image(one, one)):
        assert (changed - both).abs().max() > 1e-3
    pipe.set_facesnap_scale(landmark_scale=0)
    alone = pipe("a cat", identity=one, generator=tiny.seeded(), **CALL).images
    tiny.assert_same_image(image(one, one), alone, atol=1e-5)


def test_without_its_controlnet(base, repo, tmp_path):
    (tmp_path / "ip-adapter.bin").write_bytes((repo / "ip-adapter.bin").read_bytes())
    pipe = tiny.facesnap(base)
    with pytest.raises(AdapterError, match="ControlNetModel"):
        pipe.load_facesnap_adapter(tmp_path)
    pipe.load_facesnap_adapter(tmp_path, parts=["mixer", "identity_attention"])
    image = pipe("a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL).images
    expected = instantid(base, repo)
    expected.set_facesnap_scale(landmark_scale=0)
    torch.testing.assert_close(
        image,
        expected("a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL).images,
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize(
    "form", ["object", "file", "file alone", "folder", "fp16", "bin", "fp16 bin", "repo's folder"]
)
def test_its_controlnet_as_people_have_it(form, base, repo, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "ip-adapter.bin").write_bytes((repo / "ip-adapter.bin").read_bytes())
    own = ControlNetModel.from_pretrained(repo / "ControlNetModel")
    folder, options = tmp_path / "net", {}
    if form == "fp16":
        options, own = {"variant": "fp16"}, own.half()
    own.save_pretrained(folder, safe_serialization="bin" not in form, variant="fp16" if "fp16" in form else None)
    controlnet = {"object": own, "file": folder / "diffusion_pytorch_model.safetensors", "repo's folder": repo}
    if form == "file alone":
        tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
        save_file(tensors, tmp_path / "instantid-controlnet.safetensors")
        controlnet[form] = tmp_path / "instantid-controlnet.safetensors"
    pipe = tiny.facesnap(base)
    with pytest.raises(AdapterError, match="pass it as controlnet="):
        pipe.load_facesnap_adapter(tmp_path / "adapter", **options)
    pipe.load_facesnap_adapter(tmp_path / "adapter", controlnet=controlnet.get(form, folder), **options)
    image = pipe("a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL).images
    expected = instantid(base, repo)(
        "a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL
    ).images
    tiny.assert_same_image(image, expected, atol=2e-3 if form == "fp16" else 1e-6)
    assert (pipe.ffrnet.dtype, pipe.facesnap_config.landmark_style) == (torch.float32, "instantid5")


def test_not_on_another_base_model(repo):
    with pytest.raises(AdapterError, match="use a file made for") as caught:
        tiny.facesnap(tiny.sd_pipeline()).load_facesnap_adapter(repo)
    assert "\n" not in str(caught.value)


def test_survives_saving_as_an_adapter_of_our_own(base, repo, tmp_path):
    pipe = instantid(base, repo)
    image = pipe("a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL).images
    pipe.save_facesnap_adapter(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "facesnap_config.json").read_text())
    assert (config["landmark_style"], config["normalized_embeds"]) == ("instantid5", False)
    again = tiny.facesnap(base)
    again.load_facesnap_adapter(tmp_path / "ours")
    assert type(again.ffrnet) is ControlNetModel
    torch.testing.assert_close(
        again("a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL).images,
        image,
        atol=1e-6,
        rtol=0,
    )


def test_from_the_hub(base, repo, hub, tmp_path):
    hub.add_folder("InstantX/InstantID", repo)
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter("InstantX/InstantID", cache_dir=tmp_path)
    expected = instantid(base, repo)(
        "a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL
    ).images
    torch.testing.assert_close(
        pipe("a cat", identity=third_party.instantid_person(), generator=tiny.seeded(), **CALL).images,
        expected,
        atol=1e-6,
        rtol=0,
    )
