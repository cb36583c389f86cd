"""A running `evenkeel serve` with synthetic loads, for tests."""

import json
import os
import pathlib
import subprocess
import tempfile
import urllib.error
import urllib.request

ROOT = str(pathlib.Path(__file__).resolve().parents[4])
BINARY = os.environ.get("EVENKEEL") or os.path.join(ROOT, "target", "debug", "evenkeel")
LAYERS, EXPERTS, RANKS = 6, 32, 8


class Service:
    def __init__(self, token=None, config=""):
        self.folder = tempfile.TemporaryDirectory(prefix="evenkeel-page-")
        self.token, self.listen = token, "127.0.0.1:0"
        self.config = os.path.join(self.folder.name, "evenkeel.toml")
        with open(self.config, "w") as file:
            file.write(config or "[decide]\nfirst_after = 8\nevery = 16\nwindow = 32\nmove_cost = 0.5\n")
        self.start()

    def start(self):
        command = [BINARY, "serve", "--config", self.config, "--data", os.path.join(self.folder.name, "data"), "--listen", self.listen]
        if self.token:
            path = os.path.join(self.folder.name, "tokens")
            with open(path, "w") as file:
                file.write(self.token + "\n")
            command += ["--token-file", path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = self.process.stdout.readline().strip().rstrip("/")
        if not self.url:
            raise RuntimeError(f"{' '.join(command)} did not start")
        # Keep the address after a restart.
        self.listen = self.url.split("//")[1]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()

    def close(self):
        if self.process.poll() is None:
            self.stop()
        self.folder.cleanup()

    def ask(self, method, path, body=None):
        headers = {"content-type": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def make(self, name="model", **shape):
        self.ask("PUT", f"/v1/models/{name}", {"ranks": RANKS, "redundant": RANKS} | shape)

    def post(self, first, number, name="model", phase="all", hot=0, layers=LAYERS, experts=EXPERTS):
        """Posts steps in which the experts from `hot` on draw most tokens."""
        steps = [{"step": step, "counts": counts(step, hot, layers, experts)} for step in range(first, first + number)]
        self.ask("POST", f"/v1/models/{name}/loads", {"phase": phase, "steps": steps})


def counts(step, hot, layers, experts):
    """Returns the token counts of a step: most for a few experts, a few that vary by step for the others."""
    def of(layer, expert):
        place = (expert - hot - 3 * layer) % experts
        return 240 // (1 + place) + (step * 7 + layer * 11 + expert * 13) % 9
    return [[of(layer, expert) for expert in range(experts)] for layer in range(layers)]
