"""The notebook of first steps: committed without outputs, and run from start to end on a small scale."""

import json
import os

import pytest
from project import ROOT

from fer_lightning.emotions import EMOTIONS

NOTEBOOK = ROOT / "results" / "first_steps.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]

TRAINING = "fer_lightning train experiment=demo"
FEW = "data.n_train=112 data.n_val=21 data.n_test=14 data.image_size=24 model.channels=[4,8] trainer.max_epochs=2"


def test_it_is_committed_without_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert [cell["execution_count"] for cell in code] == [None] * len(code)
    assert [cell["id"] for cell in CELLS if "metadata" not in cell or cell["metadata"]] == []


@pytest.mark.slow
def test_it_trains_shows_ranks_and_predicts(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason='pip install -e ".[notebook]"')
    pytest.importorskip("ipykernel", reason='pip install -e ".[notebook]"')
    import nbformat

    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))  # nobody's own kernels and settings
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = {cell.id: cell for cell in notebook.cells}
    assert TRAINING in cells["train"].source
    cells["train"].source = cells["train"].source.replace(TRAINING, f"{TRAINING} {FEW}")

    folder = tmp_path / "empty"
    folder.mkdir()
    # "python3" is the interpreter of this process. Starting it may take long beside other tests.
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", startup_timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()

    def text(name):
        return "".join(output.text for output in cells[name].outputs if output.output_type == "stream")

    def shown(name, kind):
        return [output.data[kind] for output in cells[name].outputs if kind in output.get("data", {})]

    assert cells["install"].outputs == []  # nothing to install
    [run] = (folder / "runs/demo").iterdir()
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["status"] == "finished"
    assert text("numbers").startswith(f"{results['accuracy']:.2%} of 14 test faces")
    assert text("numbers").count("on validation") == len(results["history"]) == 2
    assert len(shown("pictures", "image/png")) == 3
    assert f"best: runs/demo/{run.name}/checkpoints/best.ckpt" in text("rank")
    [table] = shown("predict", "text/markdown")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == [*EMOTIONS, *EMOTIONS]
    assert {row[1] for row in rows} <= set(EMOTIONS)
    assert all(1 / 7 < int(row[2].rstrip("%")) / 100 + 0.01 <= 1.01 for row in rows)
