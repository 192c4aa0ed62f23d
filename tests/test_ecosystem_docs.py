"""The tables of docs/ecosystem.md name tests that exist and allow no larger difference than the table says."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "ecosystem.md").read_text()
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| (?!feature)", line)]


def source_of(file, name):
    text = (ROOT / file).read_text()
    kinds = (ast.FunctionDef, ast.ClassDef)
    (found,) = [node for node in ast.parse(text).body if isinstance(node, kinds) and node.name == name]
    return ast.get_source_segment(text, found)


def test_there_are_tables():
    assert len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_each_claim_has_its_test(row):
    _, _feature, here, tests, _ = (cell.strip() for cell in row.split("|"))
    sources = [source_of(file, name) for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)]
    assert bool(sources) != here.startswith("no")
    for bound in re.findall(r"within (1e-\d)", here):
        assert any(f"atol={bound}" in source for source in sources)
