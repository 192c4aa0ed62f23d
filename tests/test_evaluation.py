"""`facesnap eval`: metrics against independent computation, and whole runs on tiny real components."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import tiny
import torch
import yaml
from diffusers import ControlNetModel, StableDiffusionPipeline
from insightface.utils.face_align import norm_crop
from skimage import data as photos
from torchmetrics.functional.retrieval import retrieval_hit_rate
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor
from typer.testing import CliRunner

from facesnap_diffusers import FaceSnapPipeline, FaceSnapXLPipeline, HeadPose, InputError, load_landmark_predictor
from facesnap_diffusers.cli import app
from facesnap_diffusers.errors import MissingDependencyError
from facesnap_diffusers.evaluation import metrics
from facesnap_diffusers.evaluation.cases import Case, safe_id
from facesnap_diffusers.evaluation.clip import ClipEncoder
from facesnap_diffusers.evaluation.config import EvalConfig, read_yaml
from facesnap_diffusers.evaluation.distributions import DistributionDistance, mean_pairwise_distance
from facesnap_diffusers.evaluation.evaluate import evaluate
from facesnap_diffusers.evaluation.features import shared_analyzer
from facesnap_diffusers.evaluation.methods import make_method
from facesnap_diffusers.evaluation.protocols import load_protocol
from facesnap_diffusers.evaluation.protocols.unsplash50 import EDITING_PROMPTS, SIMILARITY_PROMPT
from facesnap_diffusers.evaluation.scoring import summarise
from facesnap_diffusers.faces.key_points import five_points
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.models.landmark_predictor import FaceCoefficients


DLIB = tiny.FACE_ENCODER
SAMPLING = {"num_inference_steps": 2, "height": tiny.SIZE, "width": tiny.SIZE}


class GridAnalyzer:
    """A recogniser of pictures: a face in the middle of each, the embedding its colours on a grid. Black has no face."""

    encoder = "tests/grid"
    embedding_dim = 48

    def analyze(self, image):
        if not image.any():
            return []
        height, width = image.shape[:2]
        points = tiny.face_points().numpy() / [120, 100] * [width, height]
        colors = np.array(PIL.Image.fromarray(image).resize((4, 4), PIL.Image.Resampling.BOX), dtype=np.float32)
        box = [*points.min(axis=0), *points.max(axis=0)]
        return [Face(image, np.array(box), points, colors.ravel() / 255 + 0.01, 1.0, self.encoder)]


@pytest.fixture(scope="module")
def dlib_analyzer():
    return shared_analyzer(DLIB)


@pytest.fixture(scope="module")
def predictor():
    return load_landmark_predictor()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    vision = tiny.image_encoder().config
    model = CLIPModel(
        CLIPModel.config_class(
            text_config=tiny.text_config(16).to_dict(), vision_config=vision.to_dict(), projection_dim=16
        )
    )
    for layer in (model.visual_projection, model.text_projection):
        torch.nn.init.normal_(layer.weight)  # the usual start is so small that all images look alike
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=image_processor, tokenizer=tiny.tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny checkpoints as users have them."""
    root = tmp_path_factory.mktemp("models")
    base = tiny.sd_pipeline()
    base.save_pretrained(root / "base")
    pipe = FaceSnapPipeline.from_pipe(base)
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(root / "adapter")
    torch.manual_seed(5)
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32))
    for parameter in controlnet.controlnet_down_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    controlnet.save_pretrained(root / "controlnet")
    tiny.image_encoder().save_pretrained(root / "image_encoder")
    save_face_id(base.unet, root / "face_id", plus=False)
    save_face_id(base.unet, root / "face_id_plus", plus=True)
    return root


def save_face_id(unet, folder, plus):
    """An IP-Adapter FaceID checkpoint with random weights in the layout of h94/IP-Adapter-FaceID."""
    width, face, tokens, clip, inner = 32, tiny.FACE_EMBED_DIM, 4, 24, 64
    generator = torch.Generator().manual_seed(6)

    def linear(*shape):
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    image_proj = {
        "proj.0.weight": linear(2 * face, face),
        "proj.0.bias": linear(2 * face),
        "proj.2.weight": linear(width * tokens, 2 * face),
        "proj.2.bias": linear(width * tokens),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    if plus:
        resampler = {"proj_in.weight": linear(width, clip), "proj_in.bias": linear(width)}
        resampler |= {"proj_out.weight": linear(width, width), "proj_out.bias": linear(width)}
        resampler |= {"norm_out.weight": torch.ones(width), "norm_out.bias": torch.zeros(width)}
        for i in range(4):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                resampler[f"layers.{i}.{norm}.weight"] = torch.ones(width)
                resampler[f"layers.{i}.{norm}.bias"] = torch.zeros(width)
            resampler[f"layers.{i}.0.to_q.weight"] = linear(inner, width)
            resampler[f"layers.{i}.0.to_kv.weight"] = linear(2 * inner, width)
            resampler[f"layers.{i}.0.to_out.weight"] = linear(width, inner)
            resampler[f"layers.{i}.1.1.weight"] = linear(4 * width, width)
            resampler[f"layers.{i}.1.3.weight"] = linear(width, 4 * width)
        image_proj |= {f"perceiver_resampler.{name}": tensor for name, tensor in resampler.items()}
    ip_adapter = {}
    for number, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        size = attention.to_q.weight.shape[0]
        if "attn2" in name:
            ip_adapter |= {f"{number}.to_{x}_ip.weight": 3 * linear(size, width) for x in "kv"}
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            projection = attention.to_out[0] if layer == "to_out" else getattr(attention, layer)
            rows, columns = projection.weight.shape
            ip_adapter[f"{number}.{layer}_lora.down.weight"] = linear(4, columns)
            ip_adapter[f"{number}.{layer}_lora.up.weight"] = linear(rows, 4)
    folder.mkdir()
    torch.save({"image_proj": image_proj, "ip_adapter": ip_adapter}, folder / "weights.bin")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A nano folder: the astronaut and two made-up people, two cases each."""
    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    astronaut = PIL.Image.fromarray(photos.astronaut()).crop((60, 0, 380, 320))
    pictures = {"astronaut": astronaut}
    for name in ("a", "b"):
        pictures[name] = PIL.Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((128, 128))
    points = (tiny.face_points() / torch.tensor([120.0, 100.0]) * tiny.SIZE).tolist()
    manifest = {
        "format": "facesnap-nano-eval",
        "version": 1,
        "background_colors": {"white": [238, 238, 236], "blue": [66, 118, 206]},
        "people": {},
        "cases": [],
    }
    for person, picture in pictures.items():
        (folder / person).mkdir()
        picture.save(folder / person / "reference.png")
        manifest["people"][person] = {"reference": [f"{person}/reference.png"]}
        for number, yaw in enumerate((-20.0, 15.0)):
            picture.rotate(3 * (number + 1)).save(folder / person / f"{number}.png")
            manifest["cases"].append(
                {
                    "id": f"{person}-{number}",
                    "person": person,
                    "prompt": f"a person, {'blue' if number else 'white'} background",
                    "pose": [yaw, 0.0, 0.0],
                    "expression": {"jawOpen": 0.5 * number},
                    "face_box": [0.3, 0.2, 0.7, 0.7],
                    "truth": f"{person}/{number}.png",
                    "background": "blue" if number else "white",
                    "driving_landmarks": points + points[36:40],
                }
            )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def astronaut(people, tmp_path_factory):
    """The same with the astronaut alone, whom dlib knows for a person."""
    folder = tmp_path_factory.mktemp("astronaut")
    manifest = json.loads((people / "manifest.json").read_text())
    manifest["cases"] = manifest["cases"][:2]
    manifest["people"] = {"astronaut": manifest["people"]["astronaut"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "astronaut").symlink_to(people / "astronaut")
    return folder


def run(people, output, methods, analyzers=None, **changes):
    values = {
        "protocol": "nano",
        "data": str(people),
        "output": str(output),
        "methods": methods,
        "sheet_rows": 2,
        **changes,
    }
    return evaluate(EvalConfig.from_dict(values), face_analyzers=analyzers or [GridAnalyzer()])


def scores(results, method, metric, group="all"):
    return results["methods"][method]["groups"][group][metric]


class TestMetrics:
    """Each against a closed form or another implementation."""

    def test_likeness(self):
        a, b = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
        assert metrics.cosine_similarity(a.numpy(), b.numpy()) == pytest.approx(
            float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6
        )
        assert metrics.euclidean_distance(a.numpy(), b.numpy()) == pytest.approx(float(torch.dist(a, b)), rel=1e-6)
        assert metrics.cosine_similarity(a.numpy(), 3 * a.numpy()) == pytest.approx(1, abs=1e-6)

    def test_retrieval_is_that_of_torchmetrics(self):
        rng = np.random.default_rng(0)
        gallery = rng.normal(size=(50, 16))
        images = gallery + 1.2 * rng.normal(size=(50, 16))
        ranks = [metrics.retrieval_rank(image, gallery, i) for i, image in enumerate(images)]
        for k in (1, 5):
            expected = [
                float(
                    retrieval_hit_rate(
                        -torch.cdist(torch.tensor(image)[None], torch.tensor(gallery))[0],
                        torch.arange(50) == i,
                        top_k=k,
                    )
                )
                for i, image in enumerate(images)
            ]
            assert [float(rank < k) for rank in ranks] == expected
            assert 0.2 < np.mean(expected) < 1

    def test_shuffled_pairs_are_found_at_chance_level(self):
        rng = np.random.default_rng(1)
        gallery = rng.normal(size=(40, 32))
        people = np.repeat(np.arange(40), 100)
        images = gallery[people] + 0.1 * rng.normal(size=(4000, 32))
        right = [metrics.retrieval_rank(image, gallery, i) for image, i in zip(images, people)]
        assert np.mean(np.array(right) < 1) == 1
        shuffled = np.array(
            [metrics.retrieval_rank(image, gallery, i) for image, i in zip(rng.permutation(images), people)]
        )
        for k in (1, 5):
            chance = k / 40
            # four standard errors; each image of a person hits or misses like the others, so 40 shuffles count 4000
            assert abs(np.mean(shuffled < k) - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000)

    def test_equal_embeddings_find_nobody(self):
        assert metrics.retrieval_rank(np.ones(4), np.ones((10, 4)), 3) == 9

    @pytest.mark.parametrize(("angle", "expected"), [(0, 1), (60, -1), (30, 0), (15, 0.5)])
    def test_copy_paste_of_angles_in_a_plane(self, angle, expected):
        """The reference at 0°, the truth at 60°."""
        reference, truth, generated = (
            np.array([math.cos(math.radians(a)), math.sin(math.radians(a))]) for a in (0, 60, angle)
        )
        assert metrics.copy_paste(generated, truth, reference) == pytest.approx(expected, abs=1e-6)

    def test_landmark_nme(self):
        target = tiny.face_points().numpy()
        unit = np.linalg.norm(target[36] - target[45])
        assert metrics.landmark_nme(target, target) == 0
        assert metrics.landmark_nme(target + [0.3 * unit, 0.4 * unit], target) == pytest.approx(0.5)
        moved = target.copy()
        moved[8] += [0, unit]
        assert metrics.landmark_nme(moved, target) == pytest.approx(1 / 68)

    def test_angles_go_round(self):
        assert metrics.angle_errors([10, -5, 179], [-20, 5, -179]).tolist() == [30, 10, 2]

    def test_pose_copy(self, predictor):
        def face(yaw, seed):
            shape = torch.randn(1, predictor.shape_basis.shape[0], generator=torch.Generator().manual_seed(seed))
            expression = torch.zeros(1, predictor.expression_basis.shape[0])
            coefficients = FaceCoefficients(
                0.7 * shape, expression, torch.tensor([[yaw, 0.0, 0.0]]), torch.tensor([8.0]), torch.zeros(1, 3)
            )
            return predictor.decode(coefficients)[0].numpy() + 100 * seed

        rotations, posed = metrics.read_landmarks(
            predictor, [face(30.0, 1), face(0.0, 2), face(30.0, 3), face(15.0, 4)]
        )
        asked, reference, as_asked, between = posed
        assert np.abs(rotations[:, 0] - [30, 0, 30, 15]).max() < 3
        assert metrics.pose_copy(asked, asked, reference) == 0
        assert metrics.pose_copy(reference, asked, reference) == 1
        assert metrics.pose_copy(asked + 0.25 * (reference - asked), asked, reference) == pytest.approx(0.25, abs=1e-6)
        # other people in these poses: the person must not matter
        assert abs(metrics.pose_copy(as_asked, asked, reference)) < 0.15
        assert abs(metrics.pose_copy(between, asked, reference) - 0.5) < 0.15
        assert metrics.pose_copy(asked, asked, asked + 1e-3) is None

    def test_pixels_and_background(self):
        image = np.full((64, 64, 3), 200, dtype=np.uint8)
        assert metrics.pixel_error(image, np.full((128, 128, 3), 149, dtype=np.uint8)) == pytest.approx(0.2)
        image[:, :, :] = (60, 120, 200)
        image[10:, 12:52] = (250, 250, 250)
        colors = {"white": (238, 238, 236), "blue": (66, 118, 206), "gray": (128, 130, 134)}
        assert metrics.background_color(image, colors) == "blue"
        with pytest.raises(InputError, match="colors"):
            metrics.background_color(image, {})

    def test_clip_is_what_the_model_itself_says(self, clip_folder):
        """CLIP's own forward gives all cosines of images and prompts, times its scale."""
        encoder = ClipEncoder(clip_folder)
        rng = np.random.default_rng(2)
        images = [rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for _ in range(3)]
        prompts = ["a red cat", "portrait, color, side view", "x" * 200]
        inputs = encoder.processor(
            text=prompts,
            images=[PIL.Image.fromarray(image) for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        with torch.no_grad():
            output = encoder.model(**inputs)
        expected = output.logits_per_image / encoder.model.logit_scale.exp()
        by_image, by_prompt = encoder.encode_images(images), encoder.encode_prompts(prompts)
        assert np.abs(by_image @ by_prompt.T - expected.numpy()).max() < 1e-5
        assert np.ptp(expected.numpy()) > 0.1
        expected = torch.cosine_similarity(output.image_embeds[0], output.image_embeds[1], dim=0)
        assert metrics.cosine_similarity(by_image[0], by_image[1]) == pytest.approx(float(expected), abs=1e-5)

    def test_fid_and_kid(self, tmp_path):
        class Colors(torch.nn.Module):
            def forward(self, images):
                return torch.cat([images.float().mean(dim=(2, 3)), images.float().std(dim=(2, 3))], dim=1) / 50

        rng = np.random.default_rng(3)
        paths = []
        for i in range(24):
            image = rng.integers(0, 120 + 4 * i, (20 + i % 2, 20, 3)).astype(np.uint8)
            paths.append(tmp_path / f"{i}.png")
            PIL.Image.fromarray(image).save(paths[-1])
        distance = DistributionDistance(paths[::2], Colors())
        fid, kid = distance(paths[1::2])
        features = [distance._extract(half).numpy() for half in (paths[::2], paths[1::2])]

        (mean_a, mean_b), (cov_a, cov_b) = (
            [f(x) for x in features] for f in (lambda x: x.mean(0), lambda x: np.cov(x.T))
        )
        expected = ((mean_a - mean_b) ** 2).sum() + np.trace(
            cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real
        )
        assert fid == pytest.approx(expected, rel=1e-5) and fid > 0

        def kernel(x, y):
            return (x @ y.T / 6 + 1) ** 3

        n = 12
        within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in features)
        assert kid == pytest.approx(within - 2 * kernel(*features).mean(), rel=1e-4)
        assert distance(paths[:1]) == (None, None)
        with pytest.raises(InputError, match="two"):
            DistributionDistance(paths[:1], Colors())

    def test_diversity(self, tmp_path):
        for name, level in {"a": 0, "b": 51, "c": 255, "d": 7}.items():
            PIL.Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / f"{name}.png")

        def distance(a, b):
            return (a - b).abs().mean()

        paths = {name: tmp_path / f"{name}.png" for name in "abcd"}
        groups = [[paths[name] for name in "abc"], [paths["d"]], [paths["a"], paths["a"]]]
        # pairs 0.4, 2.0 and 1.6 apart in [-1, 1]; then a group of two equal images
        assert mean_pairwise_distance(groups, distance) == pytest.approx((4 / 3 + 0) / 2, abs=1e-6)
        assert mean_pairwise_distance([[paths["d"]]], distance) is None

    def test_summary(self):
        rows = [
            {"case": "1", "person": "a", "group": "x", "m": 1.0},
            {"case": "2", "person": "a", "group": "x", "m": 2.0},
            {"case": "3", "person": "a", "group": "y", "m": 6.0},
            {"case": "4", "person": "a", "group": "y", "m": None},
        ]
        summary = summarise(rows)
        assert summary["all"]["m"] == {"mean": 3.0, "median": 2.0, "sem": pytest.approx(math.sqrt(7 / 3)), "n": 3}
        assert summary["x"]["m"]["mean"] == 1.5 and summary["y"]["m"]["n"] == 1


class TestProtocols:
    def test_unsplash50(self, tmp_path):
        for name in ("one.jpg", "sub/two.png", "ß é.webp"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            PIL.Image.new("RGB", (32, 32)).save(tmp_path / name)
        (tmp_path / "readme.txt").write_text("no photo")
        protocol = load_protocol("unsplash50", tmp_path, seed=10)
        assert len(EDITING_PROMPTS) == len(set(EDITING_PROMPTS)) == 20
        assert len(protocol.cases) == 3 * 21 * 4 == len({case.id for case in protocol.cases})
        assert [case.seed for case in protocol.cases] == list(range(10, 10 + 252))
        similarity = [case for case in protocol.cases if case.group == "similarity"]
        assert {case.prompt for case in similarity} == {SIMILARITY_PROMPT} and len(similarity) == 12
        limited = protocol.limit(5)
        assert len(limited.cases) == 5 and len({case.person for case in limited.cases}) == 3
        assert set(limited.cases) <= set(protocol.cases)

    def test_multi_id_bench(self, tmp_path):
        images = tmp_path / "v200_single" / "untar"
        images.mkdir(parents=True)
        for name in ("0001.jpg", "0001_1.jpg"):
            PIL.Image.new("RGB", (32, 32)).save(images / name)
        entry = {"prompt": "a man", "image_paths": ["0001_1.jpg"], "ori_img_path": "0001.jpg"}
        (tmp_path / "v200_single.json").write_text(json.dumps([entry]))
        (case,) = load_protocol("multi_id_bench", tmp_path).cases
        assert (case.prompt, case.reference, case.truth) == ("a man", (images / "0001_1.jpg",), images / "0001.jpg")
        (images / "0001.jpg").unlink()
        with pytest.raises(InputError, match="0001.jpg"):
            load_protocol("multi_id_bench", tmp_path)

    def test_nano(self, people):
        protocol = load_protocol("nano", people)
        case = protocol.cases[1]
        assert (case.id, case.seed, case.pose) == ("astronaut-1", 1, HeadPose(yaw=15.0))
        assert load_protocol("nano", people, 7).cases[1].seed == 8
        assert case.expression.weights == {"jawOpen": 0.5} and case.is_steered and len(case.driving_landmarks) == 72

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 2}, "version 1"),
            ({"cases": []}, "no cases"),
            ({"cases": None}, "no cases"),
            ({"people": []}, "no people"),
            ({"cases": [{"id": "x", "person": "a"}]}, "prompt"),
            ({"cases": [{"id": "x", "person": "nobody", "prompt": ""}]}, "nobody"),
            ({"cases": [{"id": "x", "person": "a", "prompt": "", "truth": "none.png"}]}, "none.png"),
            ({"cases": [{"id": "x", "person": "a", "prompt": "", "pose": [0, 0, 0, 0]}]}, "case 0"),
            ({"cases": [{"id": "x", "person": "a", "prompt": "", "pose": [200, 0, 0]}]}, "yaw"),
            ({"cases": [{"id": "x", "person": "a", "prompt": "", "smile": 1}]}, "smile"),
            ({"cases": [{"id": "x", "person": "a", "prompt": "", "driving_landmarks": [[0, 0]]}]}, "72"),
            ({"cases": [{"id": "../x", "person": "a", "prompt": ""}]}, "id"),
            ({"cases": [{"id": "x", "person": "a", "prompt": ""}] * 2}, "two cases 'x'"),
        ],
    )
    def test_nano_says_what_is_wrong(self, people, tmp_path, change, message):
        manifest = json.loads((people / "manifest.json").read_text())
        for name in ("astronaut", "a", "b"):
            (tmp_path / name).symlink_to(people / name)
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(InputError, match=message) as caught:
            load_protocol("nano", tmp_path)
        assert "\n" not in str(caught.value)

    def test_what_is_not_there(self, tmp_path):
        for name, match in (("nano", "manifest"), ("unsplash50", "no images"), ("multi_id_bench", "hf2bench")):
            with pytest.raises(InputError, match=match):
                load_protocol(name, tmp_path)
        with pytest.raises(InputError, match="choose one of"):
            load_protocol("other", tmp_path)
        with pytest.raises(InputError, match="no folder"):
            load_protocol("nano", tmp_path / "nowhere")

    def test_safe_ids(self):
        assert safe_id("plain", 1) == "plain-1"
        assert safe_id("a/b") != safe_id("a b") and safe_id("ö") and not safe_id(".x").startswith(".")


class TestLimits:
    """Methods that copy pictures: what the metrics say is known."""

    def test_the_reference_and_the_truth(self, people, tmp_path):
        results = run(people, tmp_path, ["reference", "truth"])
        assert scores(results, "reference", "face_similarity")["mean"] == pytest.approx(1, abs=1e-6)
        assert scores(results, "reference", "face_distance")["mean"] == 0
        assert (
            scores(results, "reference", "top1")["mean"] == 1 and scores(results, "reference", "no_face")["mean"] == 0
        )
        assert scores(results, "reference", "copy_paste")["mean"] == pytest.approx(1, abs=1e-5)
        assert scores(results, "truth", "copy_paste")["mean"] == pytest.approx(-1, abs=1e-5)
        for metric in ("truth_nme", "truth_yaw_error", "truth_distance", "truth_pixel_error"):
            assert scores(results, "truth", metric)["mean"] == 0
        assert scores(results, "reference", "truth_pixel_error")["mean"] > 0
        assert results["people"] == results["gallery"] == 3 and results["cases"] == 6

    def test_shuffled_pairs_are_found_at_chance_level(self, tmp_path):
        """Whole runs on 20 people: their own pictures with some noise find them, those of a random other one do not."""
        rng = np.random.default_rng(4)
        cells = rng.integers(20, 236, (20, 4, 4, 3))
        (tmp_path / "data").mkdir()
        people, cases = {}, []
        for number, picture in enumerate(cells):
            name = f"{number:02}"
            PIL.Image.fromarray(picture.astype(np.uint8)).resize((32, 32), 0).save(tmp_path / "data" / f"{name}.png")
            people[name] = {"reference": [f"{name}.png"]}
            cases += [{"id": f"{name}-{image}", "person": name, "prompt": "someone"} for image in range(3)]
        manifest = {"format": "facesnap-nano-eval", "version": 1, "people": people, "cases": cases}
        (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
        shown = {"own": np.repeat(np.arange(20), 3), "shuffled": rng.integers(0, 20, 60)}
        for name, chosen in shown.items():
            (tmp_path / name).mkdir()
            for case, number in zip(cases, chosen):
                noisy = np.clip(cells[number] + rng.integers(-20, 21, (4, 4, 3)), 1, 255).astype(np.uint8)
                PIL.Image.fromarray(noisy).resize((32, 32), 0).save(tmp_path / name / f"{case['id']}.png")
        methods = [{"kind": "images", "name": name, "folder": str(tmp_path / name)} for name in shown]
        results = run(tmp_path / "data", tmp_path / "out", methods, sheet_rows=0)
        assert scores(results, "own", "top1")["mean"] == 1
        for k in (1, 5):
            chance = k / 20
            found = scores(results, "shuffled", f"top{k}")["mean"]
            assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / 60), k
        # a random choice shows the right one now and then: those are the hits
        hits = np.mean(shown["shuffled"] == shown["own"])
        assert scores(results, "shuffled", "top1")["mean"] == pytest.approx(hits) and hits > 0

    def test_an_identical_photo_to_dlib(self, astronaut, tmp_path, dlib_analyzer):
        results = run(astronaut, tmp_path, ["reference"], [dlib_analyzer])
        assert scores(results, "reference", "face_similarity")["mean"] == pytest.approx(1, abs=1e-6)
        assert scores(results, "reference", "face_distance")["mean"] == 0
        (row, _) = [json.loads(line) for line in (tmp_path / "reference" / "scores.jsonl").read_text().splitlines()]
        found = dlib_analyzer.analyze(np.array(PIL.Image.open(astronaut / "astronaut" / "reference.png")))[0]
        true = dlib_analyzer.analyze(np.array(PIL.Image.open(astronaut / "astronaut" / "0.png")))[0]
        assert row["truth_distance"] == pytest.approx(np.linalg.norm(found.embedding - true.embedding), abs=1e-5)
        unit = np.linalg.norm(true.landmarks[36] - true.landmarks[45])
        errors = np.linalg.norm(found.landmarks - true.landmarks, axis=1)
        assert row["truth_nme"] == pytest.approx(errors.mean() / unit, rel=1e-4) and row["truth_nme"] > 0.02

    def test_images_of_another_program(self, people, tmp_path):
        folder = tmp_path / "theirs"
        folder.mkdir()
        for case in load_protocol("nano", people).cases:
            picture = PIL.Image.open(case.reference[0]).resize((64, 64))
            if case.id == "a-0":
                picture = PIL.Image.new("RGB", (64, 64))
            elif case.person == "b":
                picture = PIL.Image.open(people / "a" / "reference.png").resize((64, 64))
            picture.save(folder / f"{case.id}.webp", lossless=True)
        method = {"kind": "images", "name": "their | way", "folder": str(folder)}
        results = run(people, tmp_path / "out", [method])
        assert scores(results, "their | way", "no_face")["mean"] == pytest.approx(1 / 6)
        # the black one finds nobody, and b's images show a
        assert scores(results, "their | way", "top1")["mean"] == pytest.approx(3 / 6)
        assert scores(results, "their | way", "top5")["mean"] == pytest.approx(5 / 6)
        assert scores(results, "their | way", "face_similarity")["n"] == 5
        assert "their \\| way" in (tmp_path / "out" / "results.md").read_text()
        PIL.Image.new("RGB", (64, 64), "red").save(folder / "b-0.webp")
        with pytest.raises(InputError, match="b-0.png was made with other settings or data"):
            run(people, tmp_path / "out", [method])
        (folder / "a-1.webp").unlink()
        with pytest.raises(InputError, match="a-1"):
            run(people, tmp_path / "again", ["reference", method])
        assert not (tmp_path / "again/reference").exists(), "found out before any work"

    def test_damaged_features_are_computed_again(self, astronaut, tmp_path):
        results = run(astronaut, tmp_path, ["reference"])
        for path in (tmp_path / "features").iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert run(astronaut, tmp_path, ["reference"])["methods"] == results["methods"]

    def test_people_without_a_face_are_left_out(self, tmp_path):
        for name, color in {"dark": "black", "red": "red", "blue": "blue"}.items():
            PIL.Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
        options = {"protocol": "unsplash50", "clip_model": "none", "limit": 9}
        results = run(tmp_path, tmp_path / "out", ["reference"], **options)
        assert results["people_without_face"] == ["dark"] and (results["cases"], results["gallery"]) == (6, 2)
        assert "dark" in (tmp_path / "out" / "results.md").read_text()
        for name in ("red", "blue"):
            PIL.Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        shutil.rmtree(tmp_path / "out")  # has images, too
        with pytest.raises(InputError, match="no reference shows a face"):
            run(tmp_path, tmp_path / "none", ["reference"], **options)

    def test_two_recognisers(self, astronaut, tmp_path, dlib_analyzer):
        results = run(astronaut, tmp_path, ["reference"], [GridAnalyzer(), dlib_analyzer])
        assert scores(results, "reference", f"face_distance/{DLIB}")["n"] == 2
        assert scores(results, "reference", f"no_face/{DLIB}")["mean"] == 0
        assert results["face_encoders"] == ["tests/grid", DLIB]


class TestMethods:
    def methods(self, models):
        face_id = {"face_encoder": DLIB, "weight_name": "weights.bin", "adapter": str(models / "face_id")}
        plus = {**face_id, "adapter": str(models / "face_id_plus"), "image_encoder": str(models / "image_encoder")}
        return {
            "text": "text",
            "facesnap": {"kind": "facesnap", "adapter": str(models / "adapter")},
            "driving": {
                "kind": "facesnap",
                "name": "driving",
                "adapter": str(models / "adapter"),
                "landmarks": "driving",
            },
            "off": {
                "kind": "facesnap",
                "name": "off",
                "adapter": str(models / "adapter"),
                "identity_scale": 0,
                "landmark_scale": 0,
            },
            "face_id": {"kind": "ip_adapter_faceid", "name": "face_id", **face_id},
            "face_id_control": {
                "kind": "ip_adapter_faceid",
                "name": "face_id_control",
                **face_id,
                "controlnet": str(models / "controlnet"),
            },
            "plus": {"kind": "ip_adapter_faceid_plus", "name": "plus", **plus},
        }

    @pytest.fixture(scope="class")
    def all_methods(self, astronaut, models, clip_folder, tmp_path_factory):
        """One run of everything on the astronaut, with batches of two."""
        output, data = tmp_path_factory.mktemp("all"), astronaut
        sampling = {**SAMPLING, "base": str(models / "base")}
        options = {"sampling": sampling, "clip_model": clip_folder}
        results = run(data, output, list(self.methods(models).values()), batch_size=2, **options)
        return results, output, data, options

    def test_all_make_images_of_their_own(self, all_methods):
        results, output, _, _ = all_methods
        names = list(results["methods"])
        images = {name: np.array(PIL.Image.open(output / name / "astronaut-0.png")) for name in names}
        assert all(image.shape == (64, 64, 3) and image.std() > 1 for image in images.values())
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                same = {a, b} == {"text", "off"}
                assert np.array_equal(images[a], images[b]) == same, (a, b)

    def test_metrics_and_reports(self, all_methods):
        results, output, _, _ = all_methods
        assert scores(results, "text", "clip_i_text")["mean"] == pytest.approx(1, abs=1e-6)
        assert scores(results, "facesnap", "clip_i_text")["mean"] < 1
        for metric in ("landmark_nme", "yaw_error", "truth_nme", "clip_t", "clip_i", "background"):
            assert scores(results, "facesnap", metric)["n"] == 2, metric
        assert json.loads((output / "results.json").read_text())["methods"].keys() == results["methods"].keys()
        table = (output / "results.md").read_text()
        assert len([line for line in table.splitlines() if line.startswith("| ")]) == 2 + len(results["methods"])
        sheet = PIL.Image.open(output / "contact_sheet.png")
        assert sheet.width > 9 * 192 and sheet.height > 2 * 192

    def test_face_id_is_what_diffusers_makes(self, all_methods, models, dlib_analyzer):
        """Stock diffusers, called by hand as its documentation shows."""
        _, output, data, _ = all_methods
        pipe = StableDiffusionPipeline.from_pretrained(models / "base", safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_ip_adapter(
            str(models / "face_id"), subfolder=None, weight_name="weights.bin", image_encoder_folder=None
        )
        case = load_protocol("nano", data).cases[0]
        embedding = dlib_analyzer.analyze(np.array(PIL.Image.open(case.reference[0])))[0].embedding
        positive = torch.from_numpy(embedding / np.linalg.norm(embedding))[None, None, None]
        self.check_is_made_by(pipe, positive, case, output / "face_id")

    def test_face_id_plus_is_what_diffusers_makes(self, all_methods, models, dlib_analyzer):
        """The same for Plus v2: CLIP's view of the crop goes where diffusers' documentation puts it."""
        _, output, data, _ = all_methods
        pipe = StableDiffusionPipeline.from_pretrained(
            models / "base", safety_checker=None, image_encoder=tiny.image_encoder()
        )
        side = {"height": 32, "width": 32}
        pipe.register_modules(feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side))
        pipe.set_progress_bar_config(disable=True)
        pipe.load_ip_adapter(
            str(models / "face_id_plus"), subfolder=None, weight_name="weights.bin", image_encoder_folder=None
        )
        case = load_protocol("nano", data).cases[0]
        photo = np.array(PIL.Image.open(case.reference[0]))
        face = dlib_analyzer.analyze(photo)[0]
        crop = norm_crop(photo, five_points(face.landmarks).astype(np.float32), image_size=224)
        positive = torch.from_numpy(face.embedding / np.linalg.norm(face.embedding))[None, None, None]
        clip_embeds = pipe.prepare_ip_adapter_image_embeds([PIL.Image.fromarray(crop)], None, "cpu", 1, True)[0]
        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        layer.clip_embeds, layer.shortcut = clip_embeds, True
        self.check_is_made_by(pipe, positive, case, output / "plus")

    @staticmethod
    def check_is_made_by(pipe, embeds, case, folder):
        """The method's image is what the stock pipeline makes of the face embeddings, zeros for the other half."""
        image = pipe(
            case.prompt,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds])],
            generator=torch.Generator().manual_seed(case.seed),
            num_inference_steps=2,
            guidance_scale=5.0,
            negative_prompt="",
            height=64,
            width=64,
        ).images[0]
        made = np.array(PIL.Image.open(folder / "astronaut-0.png"), dtype=int)
        assert np.abs(made - np.array(image, dtype=int)).max() <= 1

    def test_known_landmarks_are_taken(self, astronaut, models, dlib_analyzer, tmp_path):
        """In place of dlib's, for the tokens and for the target, as if the pipeline had been given them."""
        data = tmp_path / "data"
        shutil.copytree(astronaut, data)
        manifest = json.loads((data / "manifest.json").read_text())
        points = 2.5 * np.array(manifest["cases"][0]["driving_landmarks"])
        manifest["people"]["astronaut"]["landmarks"] = points.tolist()
        (data / "manifest.json").write_text(json.dumps(manifest))
        sampling = {**SAMPLING, "base": str(models / "base")}
        run(data, tmp_path / "out", [self.methods(models)["facesnap"]], [dlib_analyzer], sampling=sampling)

        case = load_protocol("nano", data).cases[0]
        pipe = FaceSnapPipeline.from_pretrained(models / "base", safety_checker=None)
        pipe.load_facesnap_adapter(models / "adapter")
        pipe.set_progress_bar_config(disable=True)
        photo = np.array(PIL.Image.open(case.reference[0]))
        embedding = dlib_analyzer.analyze(photo)[0].embedding
        image = pipe(
            case.prompt,
            identity=pipe.encode_face(photo, embedding=embedding, landmarks=points),
            pose=case.pose,
            expression=case.expression,
            face_box=case.face_box,
            generator=torch.Generator().manual_seed(case.seed),
            num_inference_steps=2,
            guidance_scale=5.0,
            height=64,
            width=64,
        ).images[0]
        made = np.array(PIL.Image.open(tmp_path / "out/facesnap/astronaut-0.png"), dtype=int)
        assert np.abs(made - np.array(image, dtype=int)).max() <= 1

    def test_it_goes_on_where_it_was(self, all_methods, models):
        results, output, data, options = all_methods
        methods = list(self.methods(models).values())[:2]
        missing, kept = output / "facesnap" / "astronaut-1.png", output / "facesnap" / "astronaut-0.png"
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (missing, kept)}
        missing.unlink()
        again = run(data, output, methods, batch_size=1, **options)
        assert kept.stat().st_mtime_ns == before[kept][1]
        # alone instead of in a batch of two: the same but by rounding
        old = np.array(PIL.Image.open(io.BytesIO(before[missing][0])), dtype=int)
        assert np.abs(np.array(PIL.Image.open(missing), dtype=int) - old).max() <= 1
        assert scores(again, "facesnap", "clip_t")["mean"] == pytest.approx(
            scores(results, "facesnap", "clip_t")["mean"], abs=0.2
        )

    def test_it_does_not_mix_settings(self, all_methods, models):
        _, output, data, options = all_methods
        changed = {**options, "sampling": {**options["sampling"], "guidance_scale": 3.0}}
        with pytest.raises(InputError, match="other settings"):
            run(data, output, ["text"], **changed)
        other = models / "adapter/other-weights.txt"
        other.touch()
        try:
            with pytest.raises(InputError, match="other settings"):
                run(data, output, list(self.methods(models).values())[:2], **options)
        finally:
            other.unlink()

    def test_a_reference_without_a_face(self, people, models, tmp_path):
        """dlib finds no face in a made-up person: the method fails on that one, and it shows."""
        sampling = {**SAMPLING, "base": str(models / "base")}
        methods = [{"kind": "facesnap", "adapter": str(models / "adapter")}]
        results = run(people, tmp_path, methods, sampling=sampling, limit=2, batch_size=2)
        assert scores(results, "facesnap", "failed")["mean"] == scores(results, "facesnap", "no_face")["mean"] == 0.5
        assert scores(results, "facesnap", "top1")["n"] == 2
        failed = list((tmp_path / "facesnap").glob("*.failed"))
        stamps = [path.stat().st_mtime_ns for path in failed]
        run(people, tmp_path, methods, sampling=sampling, limit=2)
        assert len(failed) == 1 and [path.stat().st_mtime_ns for path in failed] == stamps

    def test_an_adapter_without_embeddings_is_not_flattered(self, astronaut, models, tmp_path):
        pipe = FaceSnapPipeline.from_pretrained(models / "base", safety_checker=None)
        tiny.add_adapter(pipe, face_embed_dim=None)
        pipe.save_facesnap_adapter(tmp_path / "clip")
        methods = [{"kind": "facesnap", "name": name, "adapter": str(folder)} for name, folder in
                   (("both", models / "adapter"), ("clip", tmp_path / "clip"))]  # fmt: skip
        sampling = {**SAMPLING, "base": str(models / "base")}
        results = run(astronaut, tmp_path / "out", methods, sampling=sampling, limit=1)
        told = {name: method["encoder_of_training"] for name, method in results["methods"].items()}
        assert told == {"both": DLIB, "clip": None}

    def test_sdxl(self, astronaut, tmp_path):
        base = tiny.xl_pipeline()
        base.save_pretrained(tmp_path / "base")
        pipe = FaceSnapXLPipeline.from_pipe(base)
        tiny.add_adapter(pipe)
        pipe.save_facesnap_adapter(tmp_path / "adapter")
        methods = ["text", {"kind": "facesnap", "adapter": str(tmp_path / "adapter")}]
        sampling = {**SAMPLING, "base": str(tmp_path / "base")}
        results = run(astronaut, tmp_path / "out", methods, sampling=sampling, limit=1)
        assert scores(results, "facesnap", "failed")["mean"] == 0
        a, b = (PIL.Image.open(tmp_path / "out" / name / "astronaut-0.png") for name in ("text", "facesnap"))
        assert not np.array_equal(np.array(a), np.array(b))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ("magic", "choose one of text"),
            ({"kind": "facesnap", "adaptor": "x"}, "adaptor"),
            ({"kind": "facesnap", "identity_scale": "much"}, "identity_scale"),
            ({"kind": "ip_adapter_faceid_plus", "shortcut": "maybe"}, "shortcut"),
            ({"kind": "text", "name": 3}, "name"),
        ],
    )
    def test_wrong_settings(self, values, message):
        with pytest.raises(InputError, match=message):
            make_method(values)

    @pytest.mark.parametrize(
        ("method", "sampling", "message"),
        [
            ("text", {}, "base is not given"),
            ("text", {"base": "{models}/nowhere"}, "nowhere"),
            ({"kind": "facesnap", "landmarks": "mine"}, {"base": "{models}/base"}, "retargeted or driving"),
            (
                {"kind": "ip_adapter_faceid", "adapter": "{models}/face_id", "weight_name": "x.bin"},
                {"base": "{models}/base"},
                "x.bin",
            ),
            ({"kind": "facesnap", "adapter": "{models}/base"}, {"base": "{models}/base"}, "no FaceSnap adapter"),
        ],
    )
    def test_what_cannot_be_loaded(self, people, models, tmp_path, method, sampling, message):
        method, sampling = json.loads(json.dumps([method, sampling]).replace("{models}", str(models)))
        with pytest.raises(ValueError, match=message) as caught:
            run(people, tmp_path, [method], sampling=sampling)
        assert "\n" not in str(caught.value)

    def test_a_case_knows_what_it_depends_on(self, people):
        case, other, *_ = load_protocol("nano", people).cases
        assert case.fingerprint() == load_protocol("nano", people).cases[0].fingerprint() != other.fingerprint()
        with pytest.raises(InputError, match="reference"):
            Case("x", "a", (), "prompt", 0)


class TestSetMetrics:
    def test_diversity_and_real_images(self, people, clip_folder, tmp_path):
        values = {"protocol": "nano", "data": str(people), "output": str(tmp_path), "methods": ["reference"]}
        values |= {"clip_model": clip_folder, "real": str(people), "real_features": "clip", "diversity": True}
        results = evaluate(
            EvalConfig.from_dict(values),
            face_analyzers=[GridAnalyzer()],
            perceptual_distance=lambda a, b: (a - b).abs().mean(),
        )
        assert (
            scores(results, "reference", "fid")["mean"] >= 0
            and "kid" in results["methods"]["reference"]["groups"]["all"]
        )
        # no person has two images of one prompt
        assert "diversity" not in results["methods"]["reference"]["groups"]["all"]

    @pytest.mark.parametrize(
        ("options", "library"),
        [({"diversity": True}, "torchvision"), ({"real": "."}, "torch_fidelity")],
    )
    def test_missing_libraries_are_named_before_any_work(self, people, tmp_path, options, library):
        try:
            __import__(library)
            pytest.skip(f"{library} is installed")
        except ImportError:
            pass
        with pytest.raises(MissingDependencyError, match=library.replace("_", "-")):
            run(people, tmp_path, ["reference"], **options)
        assert not (tmp_path / "reference").exists()


class TestCommand:
    def invoke(self, *arguments):
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    def test_options(self, astronaut, tmp_path):
        result = self.invoke(
            "--protocol", "nano", "--data", astronaut, "--output", tmp_path, "--method", "reference", "--limit", 2
        )
        assert result.exit_code == 0, result.output
        assert "| reference |" in result.output and (tmp_path / "contact_sheet.png").is_file()

    def test_config_file(self, astronaut, models, tmp_path):
        config = tmp_path / "eval.yaml"
        values = {
            "protocol": "nano",
            "data": str(astronaut),
            "output": str(tmp_path / "out"),
            "methods": ["text"],
            "sampling": {"base": str(models / "base"), "num_inference_steps": 9, "height": 64},
            "limit": 1,
        }
        config.write_text(yaml.safe_dump(values))
        method = f"facesnap:adapter={models / 'adapter'},landmark_scale=0.5"
        result = self.invoke(config, "--method", method, "--steps", 1, "--sheet-rows", 0)
        assert result.exit_code == 0, result.output
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        settings = results["methods"]["facesnap"]["settings"]
        assert (settings["landmark_scale"], settings["num_inference_steps"], settings["height"]) == (0.5, 1, 64)
        # the recogniser that judges is the one that the adapter was trained with
        assert "flatters" in result.output and not (tmp_path / "out" / "contact_sheet.png").exists()

    def test_example(self):
        path = Path(__file__).parents[1] / "examples/nano/eval.yaml"
        config = EvalConfig.from_dict(read_yaml(path), str(path))
        names = [make_method(method).name for method in config.methods]
        assert names[0] == "text only" and names[-1] == "the true picture" and len(names) == 11

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("protocol: nano", "lacks data"),
            ("protocol: [", "no YAML"),
            ("- a", "names and values"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text]\nsteps: 3", "steps"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: text", "methods is 'text'"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: []", "methods is empty"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text, text]", "two methods"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text]\nsampling: {stepz: 3}", "stepz"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text]\nsampling: 3", "sampling is 3"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text]\nsampling: {height: high}", "height is 'high'"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text]\nbatch_size: 0", "batch_size"),
            ("protocol: nano\ndata: x\noutput: y\nmethods: [text]\nlimit: true", "limit"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "eval.yaml").write_text(text)
        result = self.invoke(tmp_path / "eval.yaml")
        assert isinstance(result.exception, InputError) and message in str(result.exception)
        assert "\n" not in str(result.exception)
