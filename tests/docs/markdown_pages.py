"""Code blocks of Markdown pages, with what the comments around them say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?P<comments>(?:<!--.*?-->\s*)*)^```(?P<language>\w+)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Snippet:
    """A code block. `setup` is run before it and is not shown; `skip` says why it is not run."""

    language: str
    code: str
    line: int
    setup: str = ""
    skip: str = ""


def snippets_of(page: Path, *languages: str) -> list[Snippet]:
    """The code blocks of a page in some languages, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        if block["language"] in languages:
            said = {
                name: "\n".join(re.findall(rf"<!-- {name}: (.*?) -->", block["comments"]))
                for name in ("setup", "skip")
            }
            line = text[: block.start("code")].count("\n") + 1
            found.append(Snippet(block["language"], block["code"], line, **said))
    return found


def pages() -> list[Path]:
    """All pages that readers meet: in the root, the documentation, beside the examples, and those that ship in the package."""
    return [
        path
        for folder in ("", "docs/**", "examples/**", "src/**")
        for path in sorted(ROOT.glob(f"{folder}/*.md".lstrip("/")))
    ]
