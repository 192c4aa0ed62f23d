"""dlib's network in torch against dlib's own implementation."""

import numpy as np
import pytest
import skimage.data
import torch

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.analyzers.dlib import RECOGNIZER_FILE, dlib_models
from facesnap_diffusers.training.dlib_network import load_dlib_network
from facesnap_diffusers.training.recognizer import load_network


pytestmark = pytest.mark.slow


def test_dlibs_network_gives_dlibs_embeddings():
    """On any chip, against dlib's own implementation."""
    dlib = pytest.importorskip("dlib")
    network = load_network("facesnap_diffusers.training.dlib_network:load_dlib_network")
    own = dlib.face_recognition_model_v1(str(dlib_models() / RECOGNIZER_FILE))
    photo = skimage.data.astronaut()
    chips = np.stack([photo[40:190, 150:300], photo[200:350, 100:250], photo[0:300:2, 0:300:2]])
    expected = np.array([own.compute_face_descriptor(np.ascontiguousarray(chip)) for chip in chips])
    crops = (torch.from_numpy(chips).permute(0, 3, 1, 2) / 127.5 - 1).requires_grad_(True)
    embeds = network(crops)
    assert np.abs(embeds.detach().numpy() - expected).max() < 1e-5
    assert torch.equal(embeds, network.hidden_states(crops)[-1])
    (gradient,) = torch.autograd.grad(embeds[0].square().sum(), crops)
    assert gradient[0].any() and not gradient[1:].any()


def test_another_file_is_not_dlibs_network(tmp_path):
    pytest.importorskip("dlib")
    whole = (dlib_models() / RECOGNIZER_FILE).read_bytes()
    within_sizes = whole.index(b"con_4") + 8
    for content in (b"nonsense", whole[:100_000], whole[100_000:], whole[:within_sizes]):
        (tmp_path / "network.dat").write_bytes(content)
        with pytest.raises(InputError, match="is not dlib's recognizer"):
            load_dlib_network(tmp_path / "network.dat")
    with pytest.raises(InputError, match="No such file"):
        load_dlib_network(tmp_path / "missing.dat")
