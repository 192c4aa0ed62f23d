"""What an unknown name in a call was probably meant to be."""

import pytest
import tiny

from facesnap_diffusers import FaceSnapPipeline, InputError


@pytest.fixture(scope="module")
def pipe():
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    return pipe


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("up_block", "'up_blocks'"),
        ("mid_blok", "'mid_block"),
        ("down_blocks.O", "'down_blocks"),
        ("x", "layers are like"),
    ],
)
def test_names_of_blocks(pipe, name, meant):
    for scale in (
        pipe.set_facesnap_scale,
        lambda scales: pipe("a cat", identity=tiny.identity(), identity_scale=scales),
    ):
        with pytest.raises(InputError, match=f"no attention layer begins with '{name}'; .*{meant}"):
            scale({name: 1.0})


@pytest.mark.parametrize("angle", ["yaw", "pitch", "roll"])
def test_angles_belong_to_a_pose(pipe, angle):
    with pytest.raises(InputError, match=rf"takes no argument {angle}=; pass pose=HeadPose\({angle}=20\)"):
        pipe("a cat", **{angle: 20})
