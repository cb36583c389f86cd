"""A skip is printed and recorded in a file. In CI it is an error unless `.ci/skips` lists it."""

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import SKIPPED

HERE = pathlib.Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(not SKIPPED.is_file(), reason="no repository around the tests")


def run(command, tmp_path, ci):
    """Returns the output of a command, and the recorded reasons and places."""
    kept = tmp_path / "kept"
    kept.write_text("")
    environment = {**os.environ, "CI": ci, "EVENKEEL_SKIPS": str(kept)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    return answer, [tuple(line.split("\t")) for line in kept.read_text().splitlines()]


@pytest.mark.parametrize(
    "reason, name, listed",
    [
        ("no GPU", "no GPU", True),
        ("no GPU (no driver\nhere)", "no GPU", True),
        ("no GPU here", "no GPU here", False),
        ("no", "no", False),
        ("# What CI may leave out", "# What CI may leave out", False),
        ("no G.U", "no G.U", False),
        ("-v", "-v", False),
    ],
)
def test_a_reason_is_compared_whole(tmp_path, reason, name, listed):
    for ci in ("", "true"):
        answer, kept = run([SKIPPED, reason, "here"], tmp_path, ci)
        assert kept == [(name, "here")]
        assert answer.returncode == int(ci == "true" and not listed)
        assert answer.stderr.startswith("skipped: ") and ("expected one that .ci/skips lists" in answer.stderr) == (
            answer.returncode == 1
        )
    assert run([SKIPPED], tmp_path, "true")[0].returncode == 2


@pytest.mark.parametrize("reason, listed", [("no real traces", True), ("no time (at all)", False)])
def test_pytest_fails_for_what_is_not_listed(tmp_path, reason, listed):
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('theirs', {str(HERE / 'conftest.py')!r})\n"
        "theirs = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(theirs)\n"
        "pytest_sessionfinish = theirs.pytest_sessionfinish\n"
    )
    (tmp_path / "test_one.py").write_text(
        f"import pytest\n\ndef test_a():\n    pytest.skip({reason!r})\n\ndef test_b():\n    pass\n"
    )
    (tmp_path / "test_whole.py").write_text(f"import pytest\npytest.skip({reason!r}, allow_module_level=True)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    for ci in ("", "true"):
        answer, kept = run(command, tmp_path, ci)
        name = reason.partition(" (")[0]
        assert sorted(kept) == [(name, "test_one.py::test_a"), (name, "test_whole.py")], answer.stdout
        assert answer.returncode == int(ci == "true" and not listed), answer.stdout
        assert answer.stderr.count(f"skipped: {reason} [") == 2
