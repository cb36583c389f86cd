"""Tests the client against the real service. The binary is `EVENKEEL_BIN`, or the one that cargo built."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from evenkeel.client import Background, Client, ServiceError, encode

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
CONFIG = '[decide]\npolicy = "eplb"\nfirst_after = 4\nevery = 6\nmin_every = 3\n'


def binary():
    built = [TARGET / kind / "evenkeel" for kind in ("debug", "release")]
    named = [pathlib.Path(os.environ["EVENKEEL_BIN"])] if "EVENKEEL_BIN" in os.environ else []
    there = [path for path in named + built if path.is_file()]
    if not there:
        pytest.skip("no evenkeel binary (cargo build makes one, EVENKEEL_BIN names one)")
    return max(there, key=lambda path: path.stat().st_mtime)


@pytest.fixture
def url(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    command = [binary(), "serve", "--listen", "127.0.0.1:0", "--data", tmp_path, "--config", tmp_path / "config.toml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield server.stdout.readline().strip()
        server.terminate()
        assert server.wait(20) == 0


def counts(step):
    rng = np.random.default_rng(step)
    loads = rng.integers(10, 40, size=(2, 8))
    loads[:, (step // 6) % 8] += 200
    return loads


def test_steps_are_posted_in_both_forms_and_a_plan_comes_back(url):
    client = Client(url, "m", phase="decode")
    assert client.create(ranks=4, redundant=4, model="mixtral-8x7b")["shape"]["ranks"] == 4
    assert client.create(ranks=4, redundant=4, model="mixtral-8x7b")["name"] == "m"
    assert client.plan() is None
    assert client.post(0, counts(0), layers=[3, 4])["accepted"] == 1
    assert client.post(0, counts(0), layers=[3, 4])["repeated"] == 1
    assert client.post_steps([(1, counts(1)), (2, counts(2))], [3, 4], binary=False)["accepted"] == 2
    assert client.post(1, counts(1).tolist(), layers=[3, 4])["repeated"] == 1, "both forms say the same"
    with pytest.raises(ServiceError, match="step 2 was posted before") as refused:
        client.post(2, counts(3), layers=[3, 4])
    assert refused.value.status == 409
    with Background(client) as loads:
        assert all(loads.put(step, counts(step), [3, 4]) for step in range(3, 12))
    assert (loads.dropped, loads.error) == (0, None)
    plan = client.plan(wait=20)
    assert plan.version >= 1 and plan.ranks == [0, 1, 2, 3]
    assert [layer["layer"] for layer in json.loads(plan.text)["layers"]] == [3, 4]
    assert "physical_to_logical_map" in client.plan("sglang").text
    assert client.rank_down(1)["decisions"][0]["outcome"] == "applied"
    assert client.plan(wait=20).ranks == [0, 2, 3]
    assert client.rank_up(1)["decisions"][0]["trigger"] == "rank_up"
    assert client.state()["phases"][0]["down"] == []


def test_an_engine_that_starts_again_is_a_new_run(url):
    client = Client(url, "m")
    client.create(ranks=4, redundant=4)
    for engine in range(3):
        with Background(client) as loads:
            assert all(loads.put(step, counts(step + engine)) for step in range(6))
        assert (loads.posted, loads.dropped, loads.error) == (6, 0, None)
    assert client.state()["phases"][0]["accepted"] == 18
    assert client.post(0, counts(0), run="a")["accepted"] == 1
    assert client.post(0, counts(0), run="a")["repeated"] == 1, "a step counts once within its run"
    with pytest.raises(ServiceError) as refused:
        client.post(0, counts(1), run="a")
    assert refused.value.status == 409


def test_a_model_is_deleted_and_made_in_another_shape(url):
    client = Client(url, "m")
    assert client.delete() is False
    client.create(ranks=4, redundant=4)
    client.post(0, counts(0))
    assert client.delete() is True
    with pytest.raises(ServiceError) as gone:
        client.state()
    assert gone.value.status == 404
    assert client.create(ranks=2)["shape"]["ranks"] == 2
    assert client.post(0, counts(1))["accepted"] == 1


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="expected one of all, prefill, decode"):
        Client("http://127.0.0.1:1", "m", phase="both")
    with pytest.raises(ValueError, match="expected http://"):
        Client("127.0.0.1:1", "m")
    with pytest.raises(ValueError, match="2 layers x 2 experts"):
        encode([(0, [[1, 2], [3]])], [0, 1])
    with pytest.raises(ValueError, match="whole numbers"):
        encode([(0, [[1, -2]])], [0])
    with pytest.raises(OSError):
        Client("http://127.0.0.1:9", "m", patience=0.1).post(0, [[1, 2]])
