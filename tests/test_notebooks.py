"""The notebooks run from top to bottom, and an LLM on this machine answers where there is one."""

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `dev` is not installed")
pytest.importorskip("nbclient", reason="the extra `dev` is not installed")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RAG = [path for path in NOTEBOOKS if path.stem.endswith("_rag")]
_spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
execute_notebooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute_notebooks)


def outputs(notebook) -> str:
    """All text that the cells put out."""
    return "\n".join(
        output.get("text") or "".join(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.fixture
def kernel_environment(monkeypatch, package_environment, encoder) -> None:
    """Kernels find this package, and no language model."""
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", package_environment["PYTHONPATH"])
    monkeypatch.delenv("NEXUS_LLM_URL", raising=False)


@pytest.mark.model
@pytest.mark.dendrites
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, kernel_environment, request) -> None:
    """No cell fails, the gain that the last cell asserts included; no answer is made up."""
    needed = {
        "01": ["llama_index", "tantivy"],
        "02": ["langchain_core", "tantivy"],
        "04": ["langchain_chroma"],
    }
    for package in needed.get(path.stem[:2], []):
        pytest.importorskip(package)
    if path.stem.startswith("03"):
        request.getfixturevalue("perforatedai")
    told = outputs(execute_notebooks.execute(path))
    if path in RAG:
        assert "No language model is set, so there is no answer." in told
        assert "[store-01] Vaccines are kept in the pharmacy refrigerator" in told


class _LanguageModel(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible chat server does, and keeps what it was sent."""

    asked: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, **request})
        message = {"role": "assistant", "content": "Call the pharmacist on extension 311."}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def language_model() -> Iterator[tuple[str, list[dict]]]:
    """The address of a chat server on loopback, and what it was asked."""
    _LanguageModel.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _LanguageModel)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", _LanguageModel.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.model
@pytest.mark.parametrize("path", RAG, ids=lambda path: path.stem)
def test_a_local_language_model_answers(
    path: Path, kernel_environment, language_model, monkeypatch, tmp_path: Path
) -> None:
    """With an address on this machine the passages found go to it, and its answer is shown."""
    client = {"01": "llama_index.llms.openai_like", "02": "langchain_openai"}
    pytest.importorskip(client[path.stem[:2]])
    address, asked = language_model
    monkeypatch.setenv("NEXUS_LLM_URL", address)
    monkeypatch.setenv("NEXUS_LLM_MODEL", "tiny")
    told = outputs(execute_notebooks.execute(shortened(path, tmp_path)))
    assert "Call the pharmacist on extension 311." in told
    assert "No language model is set" not in told
    (request,) = asked
    assert (request["path"], request["model"]) == ("/v1/chat/completions", "tiny")
    prompt = json.dumps(request["messages"])
    assert "Reception and office employees who fall ill telephone the office manager" in prompt
    assert "goldie is beeping 11 degrees who do i call" in prompt


@pytest.mark.model
@pytest.mark.parametrize("path", RAG, ids=lambda path: path.stem)
def test_a_language_model_elsewhere_is_refused(
    path: Path, kernel_environment, monkeypatch, tmp_path: Path
) -> None:
    """The passages do not go to another machine."""
    from nbclient.exceptions import CellExecutionError

    monkeypatch.setenv("NEXUS_LLM_URL", "https://api.example.com/v1")
    with pytest.raises(CellExecutionError, match="is not on this machine"):
        execute_notebooks.execute(shortened(path, tmp_path))


def shortened(path: Path, folder: Path) -> Path:
    """Write a copy with the first three cells, imports to index, and that of the answer."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [*cells[:3], *(cell for cell in cells if "NEXUS_LLM_URL" in cell.source)]
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


# What is committed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run(path: Path) -> None:
    """Every cell ran once, in order, without an error; plots are there; no path of a machine."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds
    assert not any(output.get("name") == "stderr" for cell in code for output in cell.outputs)
    images = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert images
    assert not re.search(r"/(home|root|tmp|work|Users|usr|var)/", outputs(notebook))
    assert "def " not in "".join(cell.source for cell in code), "functions live in the package"
    assert any("assert gain.intervals" in cell.source for cell in code[-1:])
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of the prose is a file of this repository."""
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link]
    assert len(links) >= 2
    for link in links:
        assert (FOLDER / link.partition("#")[0]).is_file(), link
