"""Diversity, FID and KID against their formulas, and in whole runs."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import torch
from evaluation_fixtures import GridAnalyzer, run

from facesnap_diffusers import InputError, MissingDependencyError
from facesnap_diffusers.evaluation.cases import image_files
from facesnap_diffusers.evaluation.distributions import DistributionDistance, mean_pairwise_distance
from facesnap_diffusers.evaluation.eval_config import EvalConfig
from facesnap_diffusers.evaluation.evaluate import evaluate
from facesnap_diffusers.settings import parse_settings


class Colors(torch.nn.Module):
    def forward(self, images):
        return torch.cat([images.float().mean(dim=(2, 3)), images.float().std(dim=(2, 3))], dim=1) / 50


def test_fid_and_kid(tmp_path):
    rng = np.random.default_rng(3)
    paths = []
    for i in range(24):
        image = rng.integers(0, 120 + 4 * i, (20 + i % 2, 20, 3)).astype(np.uint8)
        paths.append(tmp_path / f"{i}.png")
        PIL.Image.fromarray(image).save(paths[-1])
    distance = DistributionDistance(paths[::2], Colors())
    fid, kid = distance(paths[1::2])
    features = [distance._extract(half).numpy() for half in (paths[::2], paths[1::2])]

    (mean_a, mean_b), (cov_a, cov_b) = ([f(x) for x in features] for f in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert fid == pytest.approx(expected, rel=1e-5)
    assert fid > 0

    def kernel(x, y):
        return (x @ y.T / 6 + 1) ** 3

    n = 12
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in features)
    assert kid == pytest.approx(within - 2 * kernel(*features).mean(), rel=1e-4)
    assert distance(paths[:1]) == (None, None)
    with pytest.raises(InputError, match="two"):
        DistributionDistance(paths[:1], Colors())


def test_diversity(tmp_path):
    for name, level in {"a": 0, "b": 51, "c": 255, "d": 7}.items():
        PIL.Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / f"{name}.png")

    def distance(a, b):
        return (a - b).abs().mean()

    paths = {name: tmp_path / f"{name}.png" for name in "abcd"}
    groups = [[paths[name] for name in "abc"], [paths["d"]], [paths["a"], paths["a"]]]
    # pairs 0.4, 2.0 and 1.6 apart in [-1, 1]; then a group of two equal images
    assert mean_pairwise_distance(groups, distance) == pytest.approx((4 / 3 + 0) / 2, abs=1e-6)
    assert mean_pairwise_distance([[paths["d"]]], distance) is None


class TestSetMetrics:
    def test_diversity_and_real_images(self, people, tmp_path):
        """By the true pictures as a method, of which each person now has two for one prompt, and another."""
        data = shutil.copytree(people, tmp_path / "people")
        manifest = json.loads((data / "manifest.json").read_text())
        names = list(manifest["people"])
        for person in names:
            PIL.Image.open(data / person / "0.png").rotate(90).save(data / person / "2.png")
            case = next(case for case in manifest["cases"] if case["id"] == f"{person}-0")
            manifest["cases"].append({**case, "id": f"{person}-2", "ground_truth": f"{person}/2.png"})
        (data / "manifest.json").write_text(json.dumps(manifest))
        values = {"benchmark": "nano", "data": str(data), "output": str(tmp_path / "out"), "methods": ["ground_truth"]}
        values |= {"real": str(people), "diversity": True}
        results = evaluate(
            parse_settings(EvalConfig, values, "config"),
            face_analyzers=[GridAnalyzer()],
            perceptual_distance=lambda a, b: (a - b).abs().mean(),
            real_features=Colors(),
        )
        groups = results["methods"]["ground_truth"]["groups"]["all"]
        made = {path.stem: path for path in (tmp_path / "out/ground_truth").glob("*.png")}
        assert len(made) == 9 and groups["fid"]["n"] == 9
        pixels = {name: np.asarray(PIL.Image.open(path).convert("RGB")) / 127.5 - 1 for name, path in made.items()}
        apart = [np.abs(pixels[f"{person}-0"] - pixels[f"{person}-2"]).mean() for person in names]
        assert groups["diversity"]["n"] == 6
        assert groups["diversity"]["mean"] == pytest.approx(np.mean(apart), rel=1e-5)
        expected = DistributionDistance(image_files(people), Colors())(list(made.values()))
        assert (groups["fid"]["mean"], groups["kid"]["mean"]) == pytest.approx(expected, rel=1e-4)

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
