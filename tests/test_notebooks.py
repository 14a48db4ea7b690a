"""The notebooks run from top to bottom."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_inference(model_dir, monkeypatch):
    """On a model that was trained for moments, with few questions."""
    # One device, as users have it, and this copy of the package.
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("count=8", "count=1"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    notebook = nbformat.read(NOTEBOOKS / "inference.ipynb", as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source = f"MODEL = {str(model_dir)!r}\nQUESTIONS = 3"
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 7
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "of 3 held-out scans named right" in text


def test_what_is_committed_was_run_in_order():
    """With its pictures, small, and without errors."""
    path = NOTEBOOKS / "inference.ipynb"
    assert path.stat().st_size < 600_000
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert kinds.count("display_data") == 7
