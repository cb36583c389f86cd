"""Tests the client's requests and their destinations against HTTP servers on loopback that record requests.
"""

import http.server
import json
import threading
import time

import pytest

from evenkeel import _transport
from evenkeel.client import Background, Client, ServiceError

TAKEN = json.dumps({"accepted": 1, "repeated": 0, "lag": 0}).encode()
STEP = [[1, 2], [3, 4]]


class Server:
    """HTTP server that records requests as (method, path, headers, body). It answers with `reply(method,
    path)`: status, headers, body.
    """

    def __init__(self, reply=lambda method, path: (200, {}, TAKEN)):
        outer = self
        self.asked, self.reply = [], reply

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.asked.append((self.command, self.path, dict(self.headers), body))
                status, headers, text = outer.reply(self.command, self.path)
                self.send_response(status)
                for name, value in {"content-length": str(len(text)), "connection": "close", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def tokens(self):
        return [headers.get("authorization") for _, _, headers, _ in lowered(self.asked)]

    def paths(self):
        return [path for _, path, _, _ in self.asked]


def lowered(asked):
    return [(m, p, {name.lower(): value for name, value in headers.items()}, b) for m, p, headers, b in asked]


@pytest.fixture
def serve(monkeypatch):
    """Starts servers that end with the test. The environment names no proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(*args):
        servers.append(Server(*args))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def redirect(status, to):
    return lambda method, path: (status, {"location": to(path) if callable(to) else to}, b"")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_a_token_to_another_origin(serve, status):
    other = serve()
    for to in (other.url, f"http://localhost:{other.port}", f"//127.0.0.1:{other.port}", f"https://127.0.0.1:{other.port}"):
        service = serve(redirect(status, lambda path: to + path))
        client = Client(service.url, "m", token="secret", patience=5)
        for call in (
            lambda: client.post(0, STEP),
            client.state,
            client.plan,
            client.delete,
            lambda: client.create(ranks=2),
            lambda: client.rank_down(1),
        ):
            with pytest.raises(ServiceError, match="another origin.*the service's own address") as refused:
                call()
            assert refused.value.status == status
        assert service.tokens() == ["Bearer secret"] * 6, "every call asks once"
    assert other.asked == []


def test_redundant_slots_have_the_stacks_name_too(serve):
    service = serve(lambda method, path: (200, {}, b"{}"))
    client = Client(service.url, "m")
    client.create(4)
    client.create(4, 8, nodes=2)
    client.create(4, num_redundant_experts=8)
    client.create(4, redundant=8, num_redundant_experts=8)
    bodies = [json.loads(body) for _, _, _, body in service.asked]
    assert bodies[1] == {"ranks": 4, "redundant": 8, "nodes": 2}
    assert [body["redundant"] for body in bodies] == [0, 8, 8, 8]
    assert not any("num_redundant_experts" in body for body in bodies)
    with pytest.raises(ValueError, match="redundant 0, num_redundant_experts 8: expected one of them, or equal values"):
        client.create(4, redundant=0, num_redundant_experts=8)
    assert len(service.asked) == 4


def test_the_port_that_a_scheme_implies_and_names_within_are_compared():
    assert _transport.origin("http://A.example") == _transport.origin("HTTP://a.example:80/x")
    assert _transport.origin("http://a.example") != _transport.origin("https://a.example")
    assert _transport.origin("https://a.example:443") == _transport.origin("https://a.example")


def test_a_user_in_a_redirect_is_another_origin(serve):
    service = serve()
    service.reply = redirect(307, f"http://user@127.0.0.1:{service.port}/")
    for to in (f"http://user@127.0.0.1:{service.port}/", "http://127.0.0.1:99999999/", "http://[::1/", "ftp://127.0.0.1/"):
        service.reply = redirect(307, to)
        with pytest.raises(ServiceError):
            Client(service.url, "m", token="secret").state()
    assert len(service.asked) == 4


def test_redirects_within_the_origin_keep_what_they_can(serve):
    service = serve()
    here = lambda status: lambda method, path: (  # noqa: E731
        (200, {}, TAKEN) if path.startswith("/moved") else (status, {"location": "/moved" + path}, b"")
    )
    for status in (307, 308):
        service.asked.clear()
        service.reply = here(status)
        assert Client(service.url, "m", token="t").post(4, STEP)["accepted"] == 1
        (first, second) = lowered(service.asked)
        assert second[0] == "POST" and second[3] == first[3] != b""
        assert second[2]["authorization"] == "Bearer t" and second[2]["content-type"] == first[2]["content-type"]
    for status in (301, 302, 303):
        service.asked.clear()
        service.reply = here(status)
        with pytest.raises(ServiceError, match="turns POST into GET"):
            Client(service.url, "m", token="t").post(4, STEP)
        assert Client(service.url, "m", token="t").state()["accepted"] == 1
        assert [method for method, *_ in service.asked] == ["POST", "GET", "GET"]


def test_loopback_goes_by_no_proxy(serve, monkeypatch):
    proxy, service = serve(), serve()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    for host in ("127.0.0.1", "localhost", "LOCALHOST"):
        assert Client(f"http://{host}:{service.port}", "m", token="secret").post(1, STEP)["accepted"] == 1
    assert len(service.asked) == 3 and proxy.asked == []


def test_the_proxy_is_used_but_for_what_no_proxy_lists(serve, monkeypatch):
    proxy = serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    # Nobody owns names below .invalid, so only the proxy can have answered.
    client = Client("http://planner.invalid:8787", "m", token="secret", patience=0)
    assert client.post(1, STEP)["accepted"] == 1
    assert proxy.paths() == ["http://planner.invalid:8787/v1/models/m/loads"]
    for entry in ("planner.invalid", ".invalid", "x,planner.invalid:8787", "INVALID", "*", "*.invalid"):
        for name, other in (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy")):
            monkeypatch.delenv(other, raising=False)
            monkeypatch.setenv(name, entry)
            with pytest.raises(OSError):
                Client("http://planner.invalid:8787", "m", token="secret", patience=0).post(1, STEP)
    assert len(proxy.asked) == 1
    monkeypatch.setenv("no_proxy", "lanner.invalid,planner.invalid:80,other.planner.invalid")
    assert Client("http://planner.invalid:8787", "m", patience=0).post(1, STEP)["accepted"] == 1


def test_hosts_are_recognised():
    for host in ("localhost", "a.localhost", "localhost.", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0"):
        assert _transport.is_loopback(host), host
    for host in ("localhost.example", "10.0.0.1", "128.0.0.1", "::2", "127.0.0.1.example", "notlocalhost"):
        assert not _transport.is_loopback(host), host
    listed = _transport.bypasses_proxy
    assert listed("10.1.2.3", 80, "10.0.0.0/8") and not listed("11.1.2.3", 80, "10.0.0.0/8")
    assert listed("fd00::7", 80, "[fd00::7]:80 x") and not listed("fd00::7", 81, "[fd00::7]:80")
    assert listed("fd00::7", 80, "fd00::/16") and listed("10.0.0.1", 8080, "10.0.0.1:8080")
    assert not listed("0.0.1", 80, "10.0.0.1") and not listed("a.example", 80, "") and not listed("a.example", 80, ".")


def test_what_is_posted_names_its_run(serve):
    service = serve()
    Client(service.url, "a/b").post(0, STEP)
    client = Client(service.url, "m", run="engine-7.a_B")
    client.post(0, STEP)
    client.post_steps([(1, STEP)], binary=False, run="other")
    assert service.paths() == [
        "/v1/models/a%2Fb/loads",
        "/v1/models/m/loads?run=engine-7.a_B",
        "/v1/models/m/loads?run=other",
    ]
    for wrong in ("", "a b", "a/b", "a" * 65, "é", "a\n"):
        with pytest.raises(ValueError, match="expected 1 to 64 letters"):
            Client(service.url, "m", run=wrong)
        with pytest.raises(ValueError, match="expected 1 to 64 letters"):
            client.post(0, STEP, run=wrong)


def test_a_model_is_deleted(serve):
    service = serve(lambda method, path: (204, {}, b"") if path.endswith("/m") else (404, {}, b'{"error":"no","expected":""}'))
    assert Client(service.url, "m", token="t").delete() is True
    assert Client(service.url, "n").delete() is False
    (one, _) = lowered(service.asked)
    assert one[:2] == ("DELETE", "/v1/models/m") and one[2]["authorization"] == "Bearer t" and one[3] == b""


def runs(server):
    """Returns the runs and steps of the posts, in order."""
    return [(path.partition("?run=")[2], int.from_bytes(body[28:36], "little")) for _, path, _, body in server.asked]


def test_a_background_is_a_run_and_a_restarted_counter_another(serve):
    service = serve()
    client = Client(service.url, "m")
    with Background(client) as loads:
        first = loads.run
        assert all(loads.put(step, STEP) for step in (5, 6, 6, 8, 7, 9))
        assert loads.run == first
        assert all(loads.put(step, STEP) for step in (0, 1))
        second = loads.run
        loads.put(600, STEP)
        loads.put(3, STEP)
        third = loads.run
    assert len({first, second, third}) == 3 and all(len(run) == 32 for run in (first, second, third))
    expected = [(first, step) for step in (5, 6, 6, 8, 7, 9)] + [(second, step) for step in (0, 1, 600)] + [(third, 3)]
    assert runs(service) == expected
    assert (loads.posted, loads.dropped, loads.refused, loads.error) == (10, 0, 0, None)
    assert client.run is None
    with Background(client) as again:
        assert again.run not in (first, second, third)


def test_a_stated_run_is_kept(serve):
    service = serve()
    for loads in (Background(Client(service.url, "m", run="mine")), Background(Client(service.url, "m"), run="mine")):
        with loads:
            assert all(loads.put(step, STEP) for step in (5, 6, 0))
    assert runs(service) == [("mine", step) for step in (5, 6, 0)] * 2


def test_a_background_counts_what_it_drops_and_says_why(serve):
    hold = threading.Event()

    def reply(method, path):
        hold.wait(20)
        return 409, {}, json.dumps({"error": "step 0 was posted before", "expected": "the same counts"}).encode()

    service = serve(reply)
    loads = Background(Client(service.url, "m"), most=2)
    assert loads.put(0, STEP)
    until = time.monotonic() + 20
    while not service.asked and time.monotonic() < until:
        time.sleep(0.005)
    assert [loads.put(step, STEP) for step in (1, 2, 3, 4)] == [True, True, False, False]
    assert (loads.dropped, loads.refused) == (2, 0) and "step 4: 2 steps wait already" in str(loads.error)
    hold.set()
    loads.close()
    assert (loads.posted, loads.dropped, loads.refused) == (0, 5, 3)
    assert isinstance(loads.error, ServiceError) and loads.error.status == 409


def test_a_token_or_address_that_cannot_be_sent_is_refused_unseen():
    for token in ("secret\n", "sec ret", "", "gehe\u00efm"):
        with pytest.raises(ValueError, match="token: expected printable ASCII") as refused:
            Client("http://127.0.0.1:1", "m", token=token)
        assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="expected the token as token=") as refused:
        Client("http://user:secret@127.0.0.1:1", "m")
    assert "secret" not in str(refused.value)
    for url in ("http://", "http://h:1?x=1", "http:///x", "ftp://h"):
        with pytest.raises(ValueError, match="expected http://HOST:PORT"):
            Client(url, "m")
