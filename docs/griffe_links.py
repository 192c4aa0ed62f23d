"""Turns [`Name`] in docstrings into links to the reference, or into plain code where the name is not public."""

import re
from typing import Any

import griffe

import facesnap_diffusers


#: The name and the type of an argument or attribute, at the beginning of its line.
TYPED = re.compile(r"^ +\*{0,2}\w+ \(.+?\):", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?([\w.]+?)(\(\))?`\](?![\[(])")


class Links(griffe.Extension):
    """Links of this package's docstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = TYPED.sub(lambda found: re.sub(r"\[`|`\]|`|\*(?=optional)|(?<=optional)\*", "", found[0]), obj.docstring.value)
            obj.docstring.value = REFERENCE.sub(_link, text)


def _link(found: re.Match[str]) -> str:
    name = found[1].rpartition(".")[2]
    public = name in facesnap_diffusers.__all__
    return f"[`{name}`][facesnap_diffusers.{name}]" if public else f"`{name}{found[2] or ''}`"
