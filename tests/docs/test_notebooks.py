"""The notebooks run, and keep the outputs that they are read with."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from markdown_pages import ROOT


NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
OFFLINE = ["quickstart", "train_an_adapter"]
#: Tags of cells that are not run: what pip fetches, and what needs a GPU.
LEFT_OUT = {"install", "gpu", "single-file"}


def read(name):
    return nbformat.read(ROOT / "examples" / "notebooks" / f"{name}.ipynb", as_version=4)


def tags_of(cell):
    return set(cell.metadata.get("tags", []))


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = read(name)
    notebook.cells = [cell for cell in notebook.cells if not tags_of(cell) & LEFT_OUT]
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith("!"):
            # a failing command is an error of the cell
            cell.source = (
                "%%bash -e\n" + "\n".join(line.lstrip("!") for line in cell.source.splitlines())
                if ("{" not in cell.source)
                else cell.source
            )
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if name == "train_an_adapter":
        assert (tmp_path / "run" / "adapter" / "README.md").is_file()
        assert "before" in (tmp_path / "results" / "results.md").read_text()


@pytest.mark.slow
def test_your_own_checkpoint_runs_on_tiny_ones(working_folder):
    values = {"display": lambda *shown: None}
    for cell in read("your_own_checkpoint").cells:
        if cell.cell_type != "code" or tags_of(cell) & LEFT_OUT:
            continue
        code = cell.source.replace('.to("cuda")', '.to("cpu")').replace("torch.float16", "torch.float32")
        exec(code, values)
    assert (working_folder / "my-adapter" / "facesnap_config.json").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_clean(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert f"blob/main/examples/notebooks/{path.name}" in notebook.cells[0].source  # its Colab badge
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)  # a fraction of the size of PNG
    assert not any(output.output_type == "error" for output in outputs)
    for word in ("/home/", "/root/", "/work/", "/tmp/", "Traceback"):
        assert word not in text, word
    shown = [
        cell for cell in notebook.cells if cell.cell_type == "code" and not tags_of(cell) & {*LEFT_OUT, "download"}
    ]
    assert all(cell.execution_count for cell in shown)
