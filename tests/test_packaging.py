"""What a user installs: the wheel, its types, its versions; and the files around it."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

import pytest
import yaml

import nexus_integrations

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str, timeout: float = 300) -> None:
    """Run a module of this interpreter; its output is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The folder of wheel and sdist; the wheel is built from the sdist."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", str(folder), ".")
    return folder


def test_metadata_is_what_an_index_takes(dist):
    """`twine check --strict` has nothing to say."""
    run("twine", "check", "--strict", *map(str, dist.iterdir()))


def test_wheel_holds_the_package_and_nothing_else(dist):
    """Modules, types marker, the demo corpus and the report's page; no tests, data or notebooks."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/")]
        metadata = HeaderParser().parsestr(
            file.read(next(n for n in names if n.endswith("METADATA"))).decode()
        )
    package = {n for n in names if n.startswith("nexus_integrations/")}
    rest = {PurePosixPath(n).name for n in names if n not in package}
    assert rest == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}
    others = {n for n in package if not n.endswith(".py")}
    assert others >= {"nexus_integrations/py.typed", "nexus_integrations/demo/clinic.json"}
    allowed = {".typed", ".json", ".md", ".css", ".js", ".html"}
    assert {PurePosixPath(n).suffix for n in others} <= allowed
    folders = {PurePosixPath(n).parts[1] for n in others if len(PurePosixPath(n).parts) > 2}
    assert folders == {"demo", "report"}
    committed = subprocess.run(
        ["git", "ls-files", "nexus_integrations"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert set(committed) <= package or not committed
    assert not [n for n in package if re.search(r"/(tests?/|test_)", n)]
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_sdist_builds_the_wheel_and_says_what_it_is(dist):
    """The package with what names, licenses and explains it; no data, no settings of machines."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        tops = {name.partition("/")[2].partition("/")[0] for name in file.getnames()}
    expected = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md"}
    expected |= {"pyproject.toml"}
    assert tops - {"", ".gitignore"} == expected | {"nexus_integrations", "PKG-INFO"}


def test_a_users_file_is_typed():
    """mypy finds every public type in a user's program, and has no complaint."""
    pytest.importorskip("mypy")
    # With the project's settings, which are strict, so that the cache of `make check` serves.
    run("mypy", "tests/typing_sample.py", timeout=600)


def test_one_version():
    """Package, metadata and citation name the same version, and the changelog has it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = nexus_integrations.__version__
    assert PROJECT["version"] == citation["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_errors_name_extras_that_exist():
    """Every `pip install "nexus-integrations[...]"` in code and pages names known extras."""
    known = set(PROJECT["optional-dependencies"])
    files = [
        *(ROOT / "nexus_integrations").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.py"),
        ROOT / "README.md",
    ]
    for path in files:
        for listed in re.findall(
            r"nexus-integrations\[([a-z0-9,-]+)\]", path.read_text(encoding="utf-8")
        ):
            assert set(listed.split(",")) <= known, (path.name, listed)


def test_the_workflow_tests_every_version_that_is_promised():
    """The matrix is that of the classifiers, and the file is a valid workflow."""
    pytest.importorskip("check_jsonschema")
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    run("check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, workflows))
    matrix = yaml.safe_load(workflows[0].read_text(encoding="utf-8"))["jobs"]["versions"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["strategy"]["matrix"]["python"] == promised
    for name in (ROOT / ".pre-commit-config.yaml", *workflows):
        assert yaml.safe_load(name.read_text(encoding="utf-8"))


def test_the_citation_is_valid():
    """CITATION.cff follows its format, and credits what the package rests on."""
    pytest.importorskip("check_jsonschema")
    path = ROOT / "CITATION.cff"
    run("check_jsonschema", "--builtin-schema", "vendor.citation-file-format", str(path))
    titles = " ".join(one["title"] for one in yaml.safe_load(path.read_text())["references"])
    assert all(name in titles for name in ("NUDGE", "Sentence-BERT", "PerforatedAI"))
