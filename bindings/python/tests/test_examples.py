"""The examples run as a new user runs them. The README's script is run by `test_acceptance.py`, on dumps."""

import pathlib
import subprocess
import sys

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


def test_serving_loop():
    answer = subprocess.run(
        [sys.executable, EXAMPLES / "serving_loop.py"], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("busiest rank") == 5
