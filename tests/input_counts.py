"""How many made-up or damaged inputs a test goes through, and what became of them."""

import os
from collections import Counter

import pytest


#: Set by `make test-inputs`, which goes through all of them.
ALL = bool(os.environ.get("FACESNAP_ALL_INPUTS"))
MARK = "inputs of the kind "


def counts(few: int, many: int):
    """Parametrizes a test by a few inputs, in every run, and by many, where those are asked for."""
    params = [pytest.param(few, id="few")]
    if ALL:
        params.append(pytest.param(many, id="many", marks=pytest.mark.slow))
    return pytest.mark.parametrize("count", params)


def report(kind: str, typed: int, taken: int) -> None:
    """Prints how many inputs were refused with a typed error and how many were taken; [`sums`] adds such lines up."""
    print(f"{MARK}{kind}: {typed} typed, {taken} taken")


def sums(outputs) -> list[str]:
    """Lines with the sum of each kind, of what tests printed."""
    totals: dict[str, Counter] = {}
    for line in "\n".join(outputs).splitlines():
        if line.startswith(MARK):
            kind, _, numbers = line.removeprefix(MARK).rpartition(": ")
            typed, taken = (int(number.split()[0]) for number in numbers.split(", "))
            totals.setdefault(kind, Counter()).update(typed=typed, taken=taken)
    return [
        f"{kind}: {sum(total.values())} inputs, {total['typed']} refused with a typed error, {total['taken']} taken"
        for kind, total in sorted(totals.items())
    ]
