"""The table of docs/ecosystem.md names tests that exist."""

import ast
import re
from pathlib import Path


ROOT = Path(__file__).parent.parent


def test_every_claim_has_its_test():
    text = (ROOT / "docs" / "ecosystem.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}, name
    for row in (line for line in text.splitlines() if line.startswith("| ")):
        assert "tests/" in row or "| no" in row or row.startswith("| feature"), row
