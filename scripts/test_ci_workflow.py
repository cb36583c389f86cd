#!/usr/bin/env python3
"""Tests that the forge's workflow runs what .ci/run runs: `python3 scripts/test_ci_workflow.py`."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Workflow(unittest.TestCase):
    def test_every_step_of_ci_run_is_a_job(self):
        steps = re.findall(r"^step make (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
        targets = re.search(r"target: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())[1]
        self.assertEqual(steps, targets.split(", "))


if __name__ == "__main__":
    unittest.main()
