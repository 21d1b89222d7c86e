"""Run notebooks from top to bottom and write their outputs: `python notebooks/execute.py [NAME]`.

Needs the extra `dev`. Each runs in an empty folder. Progress bars, which mean nothing afterwards,
are left out of what is written, and so is all that depends on the machine.
"""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
_KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a fresh run.

    Raises `nbclient.exceptions.CellExecutionError` when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources=resources,
            coalesce_streams=True,  # how many parts a kernel prints in is chance
        ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
    notebook.metadata = _KERNEL
    nbformat.validate(notebook)
    return notebook


def _is_bar(output: nbformat.NotebookNode) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        begun = perf_counter()
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(execute(path), path)
        print(f"{name}: {perf_counter() - begun:.0f} s")
