"""Cases: their ids and digests."""

import pytest

from facesnap_diffusers import InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.evaluation.cases import Case, safe_id


def test_safe_ids():
    assert safe_id("plain", 1) == "plain-1"
    assert safe_id("a/b") != safe_id("a b")
    assert safe_id("ö")
    assert not safe_id(".x").startswith(".")


def test_a_case_knows_what_it_depends_on(people):
    case, other, *_ = load_benchmark("nano", people).cases
    assert case.fingerprint() == load_benchmark("nano", people).cases[0].fingerprint() != other.fingerprint()
    with pytest.raises(InputError, match="reference"):
        Case("x", "a", (), "prompt", 0)
