"""The documentation's pages and the reference agree with the package."""

import re

import yaml
from markdown_pages import ROOT

import facesnap_diffusers


def test_every_public_name_is_in_the_reference_once():
    pages = [path for path in (ROOT / "docs" / "api").glob("*.md") if path.stem != "index"]
    named = re.findall(r"^::: facesnap_diffusers\.(\w+)$", "\n".join(path.read_text() for path in pages), re.MULTILINE)
    assert sorted(named) == sorted(facesnap_diffusers.__all__)
    listed = re.findall(r"`(\w+)`", (ROOT / "docs" / "api" / "index.md").read_text())
    assert set(facesnap_diffusers.__all__) <= set(listed)


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def leaves(node):
        if isinstance(node, str):
            return [node]
        values = node.values() if isinstance(node, dict) else node
        return [leaf for value in values for leaf in leaves(value)]

    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(leaves(config["nav"])) == pages


def test_version_of_the_changelog():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == facesnap_diffusers.__version__
