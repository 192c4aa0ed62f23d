"""What an analyzer says of a face, and what it must not say."""

import numpy as np
import pytest

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.face import Face


def face(**changes) -> Face:
    fields = {
        "image": np.zeros((64, 64, 3), np.uint8),
        "box": np.array([10.0, 10.0, 50.0, 50.0]),
        "landmarks": np.ones((68, 2)),
        "embedding": np.ones(4),
        "score": 1.0,
        "encoder": "test/encoder",
    }
    return Face(**(fields | changes))


class TestFace:
    def test_arrays_become_float32(self):
        assert {face().box.dtype, face().landmarks.dtype, face().embedding.dtype} == {np.dtype(np.float32)}

    @pytest.mark.parametrize(
        "changes",
        [
            {"image": np.zeros((64, 64), np.uint8)},
            {"image": np.zeros((64, 64, 3))},
            {"image": "photo"},
            {"box": np.zeros(5)},
            {"box": [0, 0, np.nan, 1]},
            {"box": "wide"},
            {"landmarks": np.zeros((5, 2))},
            {"landmarks": np.zeros((68, 4))},
            {"landmarks": np.full((68, 2), np.inf)},
            {"landmarks": None},
            {"embedding": np.zeros(512)},
            {"embedding": np.full(512, np.nan)},
            {"embedding": np.ones((1, 512))},
            {"embedding": []},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_bad_fields(self, changes):
        with pytest.raises(InputError, match=next(iter(changes))):
            face(**changes)
