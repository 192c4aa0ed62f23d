"""The name `nano`: the model in the package, unless there is something of that name."""

import pytest

from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.nano.naming import resolve_nano


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_nano_is_the_one_in_this_package(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_nano("nano", part) == str(SHIPPED_NANO / part)
    assert resolve_nano("owner/nano", part) == "owner/nano"
    (tmp_path / "nano").mkdir()
    assert resolve_nano("nano", part) == "nano"
