"""Runs the examples like a new user. `test_acceptance.py` runs the README's script on dumps."""

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
