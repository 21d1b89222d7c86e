"""The examples run as a reader would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.model
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path, package_environment, encoder) -> None:
    """It ends without an error, gains on dev, moves passages and puts them back."""
    result = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=package_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    before, after = result.stdout.split("dev nDCG@10 ")[1].split("\n")[0].split(" → ")
    assert float(after) > float(before) + 0.05
    assert "passages put back" in result.stdout
    assert list(tmp_path.iterdir()) == []
