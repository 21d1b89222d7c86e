"""What an import must not do; `lint-imports` checks who imports whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nexus_integrations

PACKAGE = Path(nexus_integrations.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORKS = ("llama_index", "langchain", "langchain_core", "langchain_community")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(path: Path) -> list[str]:
    """Every module that a file imports, wherever in the file, by its absolute name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.append(node.module or "")
    return names


CORE = [path for path in FILES if module_of(path).split(".")[0] not in ("llama_index", "langchain")]


def test_only_the_solver_choice_imports_the_reference():
    """nudge-ft is imported where it is chosen, and nowhere else."""
    found = [
        module_of(path)
        for path in FILES
        if any(name.split(".")[0] == "nudge" for name in imported(path))
    ]
    assert found == ["nudge.reference"]


def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_root_imports_nothing_heavy(package_environment):
    """`import nexus_integrations` is quick: no torch, no framework, no output."""
    heavy = ("torch", "numpy", "sentence_transformers", "transformers", *FRAMEWORKS)
    done = run(
        "import sys, nexus_integrations\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not loaded, loaded",
        package_environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_core_is_silent_and_touches_nothing(package_environment):
    """All core modules in a fresh interpreter: no framework, no output, no seed, no handler."""
    modules = [module_of(path) for path in CORE]
    names = [f"nexus_integrations.{module}" for module in modules if module]
    done = run(
        f"""
import importlib, logging, os, random, signal, sys
import sentence_transformers, torch  # what they do at import is theirs
import numpy as np
random.seed(1); np.random.seed(1); torch.manual_seed(1)
def state():
    return (
        random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist(),
        [signal.getsignal(number) for number in signal.valid_signals()], os.getcwd(),
        dict(os.environ), logging.root.level, list(logging.root.handlers), torch.get_num_threads(),
    )
before = state()
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:  # the engine of an index may not be installed
        assert name.startswith("nexus_integrations.index."), name
        assert 'pip install "nexus-integrations[' in str(error), error
assert state() == before
loaded = [name for name in {(*FRAMEWORKS, "perforatedai", "nudge")!r} if name in sys.modules]
assert not loaded, loaded
""",
        package_environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BLOCK = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
TORCH = ("torch", "transformers", "sentence_transformers")
TRAIN = (*TORCH, "scipy", "ir_measures", "datasets", "huggingface_hub", "matplotlib", "nudge",
         "onnx", "onnxscript", "pyarrow", "typer")  # fmt: skip


def test_nudge_evaluation_and_indexes_need_no_torch(package_environment):
    """What works on vectors is imported where no PyTorch is."""
    names = [
        name
        for name in map(module_of, CORE)
        if name.startswith(
            ("index", "nudge", "evaluation", "data", "frameworks", "retrievers", "jobs")
        )
    ]
    done = run(
        BLOCK.format(names=TORCH)
        + f"""
import importlib
for name in {names!r}:
    try:
        importlib.import_module("nexus_integrations." + name)
    except ImportError as error:  # the engine of an index may not be installed
        assert name.startswith("index."), (name, error)
""",
        package_environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_extra_train(package_environment):
    """Both frameworks' classes are there; what trains says what to install, and so does `nexus`."""
    done = run(
        BLOCK.format(names=TRAIN)
        + """
from nexus_integrations import DendriticEncoder, DendriticHead, Encoder, Metric, VectorIndex
from nexus_integrations.langchain import NexusEmbeddings
from nexus_integrations.llama_index import NexusEmbedding
import nexus_integrations, nexus_integrations.langchain, nexus_integrations.llama_index
for package, name, extra in (
    (nexus_integrations, "finetune", "train"),
    (nexus_integrations, "evaluate", "nudge"),
    (nexus_integrations, "nudge_index", "nudge"),
    (nexus_integrations.langchain, "NudgePostprocessor", "nudge"),
    (nexus_integrations.llama_index, "NudgePostprocessor", "nudge"),
    (nexus_integrations.llama_index, "NexusFinetuneEngine", "train"),
):
    try:
        getattr(package, name)
    except ImportError as error:
        assert f'pip install "nexus-integrations[{extra}]"' in str(error), (name, error)
    else:
        raise SystemExit(f"{name} was imported")
for model in (None, "all-MiniLM-L6-v2", "no/such-folder"):
    try:
        DendriticEncoder.load(model)
    except ImportError as error:
        assert "is no folder" in str(error) and '"nexus-integrations[train]"' in str(error), error
import runpy
runpy.run_module("nexus_integrations", run_name="__main__")
""",
        package_environment,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: the command line cannot run here: typer is missing: "
        'pip install "nexus-integrations[train]"\n'
    )


def test_all_public_names_are_there():
    """__all__ is sorted, and each name leads to what is called so."""
    assert list(nexus_integrations.__all__) == sorted(nexus_integrations.__all__)
    assert set(nexus_integrations.__all__) == set(nexus_integrations._HOMES)
    for name in nexus_integrations.__all__:
        assert getattr(nexus_integrations, name).__name__ == name
        assert name in dir(nexus_integrations)


def test_an_unknown_name_is_an_attribute_error():
    """As for any module."""
    with pytest.raises(AttributeError, match="no attribute 'Finetuner'"):
        _ = nexus_integrations.Finetuner


def test_no_module_bears_the_name_of_a_public_function():
    """`from nexus_integrations import evaluate` must never give a module."""
    modules = {module_of(path).partition(".")[0] for path in FILES}
    assert not modules & set(nexus_integrations.__all__)
