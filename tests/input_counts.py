"""How many made-up or damaged inputs a test goes through."""

import os

import pytest


#: Set by `make test-inputs`, which goes through all of them.
ALL = bool(os.environ.get("FACESNAP_ALL_INPUTS"))


def counts(few: int, many: int, all_of_them: int | None = None):
    """Parametrizes a test by a few inputs, in every run, and many, among the slow tests; all where that is asked for."""
    many = (all_of_them or many) if ALL else many
    return pytest.mark.parametrize(
        "count", [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    )
