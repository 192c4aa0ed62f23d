"""What the tests of evaluations share: tiny checkpoints, data of three people, a recognizer of pictures, and whole runs."""

import json

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from diffusers import ControlNetModel
from skimage import data as photos
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

from facesnap_diffusers import FaceSnapPipeline, load_landmark_predictor
from facesnap_diffusers.evaluation.eval_config import EvalConfig
from facesnap_diffusers.evaluation.evaluate import evaluate
from facesnap_diffusers.evaluation.features import shared_analyzer
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.settings import parse_settings


DLIB = tiny.FACE_ENCODER
SAMPLING = {"num_inference_steps": 2, "height": tiny.SIZE, "width": tiny.SIZE}


class GridAnalyzer:
    """A recognizer of pictures: a face in the middle of each, the embedding its colours on a grid. Black has no face."""

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


@pytest.fixture(scope="session")
def dlib_analyzer():
    return shared_analyzer(DLIB)


@pytest.fixture(scope="session")
def predictor():
    return load_landmark_predictor()


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
    for name, checkpoint in (("face_id", third_party.faceid), ("face_id_plus", third_party.faceid_plus)):
        (root / name).mkdir()
        torch.save(checkpoint(base.unet, face_width=tiny.FACE_EMBED_DIM), root / name / "weights.bin")
    return root


@pytest.fixture(scope="session")
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
        "version": 2,
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
                    "ground_truth": f"{person}/{number}.png",
                    "background": "blue" if number else "white",
                    "driving_landmarks": points + points[36:40],
                }
            )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
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
        "benchmark": "nano",
        "data": str(people),
        "output": str(output),
        "methods": methods,
        "sheet_rows": 2,
        **changes,
    }
    return evaluate(parse_settings(EvalConfig, values, "config"), face_analyzers=analyzers or [GridAnalyzer()])


def scores(results, method, metric, group="all"):
    return results["methods"][method]["groups"][group][metric]


def all_kinds(models):
    """Settings of all methods with a model."""
    face_id = {"face_encoder_id": DLIB, "weight_name": "weights.bin", "adapter": str(models / "face_id")}
    plus = {**face_id, "adapter": str(models / "face_id_plus"), "image_encoder_id": str(models / "image_encoder")}
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


@pytest.fixture(scope="session")
def all_methods(astronaut, models, clip_folder, tmp_path_factory):
    """One run of everything on the astronaut, with batches of two."""
    output, data = tmp_path_factory.mktemp("all"), astronaut
    sampling = {**SAMPLING, "base": str(models / "base")}
    options = {"sampling": sampling, "clip_model_id": clip_folder}
    results = run(data, output, list(all_kinds(models).values()), batch_size=2, **options)
    return results, output, data, options
