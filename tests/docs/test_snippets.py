"""Every Python snippet of the README and of the documentation runs; every command exists with its options."""

import re
import shlex

import pytest
from markdown_pages import ROOT, pages, snippets_of
from typer.main import get_command

from facesnap_diffusers.cli import app


pytestmark = pytest.mark.slow


PAGES = [page for page in pages() if snippets_of(page, "py", "python")]

# What a CPU cannot do is put in its words; everything else runs as it stands.
ON_A_CPU = {'.to("cuda")': '.to("cpu")', "torch.float16": "torch.float32"}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_snippets_run_one_after_the_other(page, working_folder):
    values = {"__name__": "snippets"}
    for snippet in snippets_of(page, "py", "python"):
        if snippet.skip:
            continue
        code = snippet.code
        for there, here in ON_A_CPU.items():
            code = code.replace(there, here)
        exec(snippet.setup, values)
        exec(compile("\n" * (snippet.line - 1) + code, name_of(page), "exec"), values)


def test_few_snippets_are_left_out():
    every = [snippet for page in PAGES for snippet in snippets_of(page, "py", "python")]
    assert sum(bool(snippet.skip) for snippet in every) / len(every) < 0.2


def test_first_snippet_of_the_readme_is_short_and_runs_as_pasted(tmp_path, monkeypatch):
    first = snippets_of(ROOT / "README.md", "py")[0]
    assert not first.setup and not first.skip
    lines = [line for line in first.code.splitlines() if line and not line.startswith(("from ", "import ", " "))]
    assert len(lines) <= 5
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(first.code, values)
    assert values["image"].size == (128, 128)


def test_readme_is_short_and_its_links_are_absolute():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 120
    repository = "https://github.com/facesnap-diffusers/facesnap-diffusers/"
    raw = "https://raw.githubusercontent.com/facesnap-diffusers/facesnap-diffusers/main/"
    for address in re.findall(r"\]\((.*?)\)", text):
        assert address.startswith("https://"), address
        for start in (f"{repository}blob/main/", f"{repository}tree/main/", raw):
            if address.startswith(start):
                assert (ROOT / address.removeprefix(start).partition("#")[0]).exists(), address


COMMANDS = [
    (page, line)
    for page in pages()
    for snippet in snippets_of(page, "sh", "bash", "shell")
    for line in snippet.code.replace("\\\n", " ").splitlines()
    if line.strip().startswith("facesnap ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_commands_exist_with_their_options(page, line):
    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("--"):
        return
    commands = get_command(app).commands
    assert words[0] in commands, f"{name_of(page)}: {line}"
    known = {option for parameter in commands[words[0]].params for option in parameter.opts + parameter.secondary_opts}
    used = {
        word.partition("=")[0] for word in words[1:] if word.startswith("-") and not word.lstrip("-")[:1].isdigit()
    }
    assert used <= known | {"--help"}, f"{name_of(page)}: {line}"
