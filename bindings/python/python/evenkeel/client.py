"""Posts loads to a running ``evenkeel serve`` and fetches its plans.

The module uses the standard library alone. It accepts arrays of NumPy and torch. One process of a serving
stack posts the counts per logical expert, summed over the ranks:

>>> from evenkeel.client import Client
>>> client = Client("http://127.0.0.1:8787", "deepseek-r1", phase="decode")
>>> client.create(ranks=32, redundant=32, model="deepseek-r1")   # once; the same again changes nothing
>>> client.post(step, counts)                                    # counts[layers, experts], at every n-th step
>>> plan = client.plan(wait=60)                                  # None if the last fetched plan is current

``post`` waits for the reply, after which the step is durable. ``Background`` posts from its own thread, so
that the model never waits. It drops and counts the steps that it cannot post in time.

Step numbers count within a **run**, one start of the engine. Two runs with different ids may both have a step
0. ``Background`` generates a run id. ``Client(.., run=ID)`` states one. Without an id, the service recognises
a counter that restarts.

The token goes to the origin of ``url`` alone: a redirect to another scheme, host or port is an error.
Requests use the proxies of the environment, except for loopback addresses and the hosts in ``NO_PROXY``. A
proxy for http sees the token, as it sees the whole request.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import ssl
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any, Iterable, NamedTuple

from . import _transport

if TYPE_CHECKING:
    from ._service_documents import ModelStatus, RankChangeResponse, Receipt

PHASES = ("all", "prefill", "decode")
RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TOKEN = re.compile(r"[!-~]+")
CONTENT_TYPE = "application/x-evenkeel-loads"
JSON = {"content-type": "application/json"}


class ServiceError(Exception):
    """A refusal by the service: ``status``, ``error`` and the ``expected`` value."""

    def __init__(self, status: int, error: str, expected: str = "") -> None:
        super().__init__(f"{error} ({status})" + (f", expected {expected}" if expected else ""))
        self.status = status
        self.error = error
        self.expected = expected


class Plan(NamedTuple):
    """A fetched plan: ``text`` in the requested format, and ``ranks``, the real ranks in the order of the
    plan's numbers.
    """

    version: int
    text: str
    ranks: list[int]
    etag: str


class Client:
    """One phase of one model of a service.

    ``phase`` is all, prefill or decode. ``token`` is the bearer token, ``context`` an ``ssl.SSLContext`` for
    https. ``run`` is the id of the run to which posted steps belong: 1 to 64 letters, digits, ``-``, ``_``
    and ``.``.

    A reply may take ``timeout`` seconds. If the service cannot be reached or is overloaded, a post is
    repeated for ``patience`` seconds, with growing pauses. Repetition is safe: a step counts once, however
    often it is posted.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        phase: str = "all",
        token: str | None = None,
        context: ssl.SSLContext | None = None,
        timeout: float = 10.0,
        patience: float = 30.0,
        run: str | None = None,
    ) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r}: expected http://HOST:PORT or https://HOST:PORT")
        if "@" in parts.netloc:
            raise ValueError("url: found a user or password in it, expected the token as token=")
        if token is not None and not TOKEN.fullmatch(token):
            raise ValueError("token: expected printable ASCII without spaces or line ends")
        self.base = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        self.phase = phase
        self.timeout = timeout
        self.patience = patience
        self.run = None if run is None else _run_id(run)
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._opener = _transport.opener(url, context)
        self._etags: dict[str, str] = {}

    def create(
        self, ranks: int, redundant: int | None = None, *, num_redundant_experts: int | None = None, **more: Any
    ) -> ModelStatus:
        """Creates the model unless it exists, and returns its state.

        ``redundant`` counts slots beyond one per expert over all ranks, by default 0. SGLang and vLLM call
        the same number ``num_redundant_experts``, which is accepted as an alias. ``more`` are nodes, groups,
        model, gpu, link_gbps.
        """
        if redundant is None:
            redundant = 0 if num_redundant_experts is None else num_redundant_experts
        elif num_redundant_experts not in (None, redundant):
            raise ValueError(
                f"redundant {redundant}, num_redundant_experts {num_redundant_experts}: "
                "expected one of them, or equal values"
            )
        body = json.dumps({"ranks": ranks, "redundant": redundant, **more}).encode()
        return json.loads(self._retried("PUT", "", body, "application/json")[1])

    def delete(self) -> bool:
        """Deletes the model with all its phases. Returns False if there is no such model."""
        try:
            self._retried("DELETE", "", None, "application/json")
        except ServiceError as error:
            if error.status != 404:
                raise
            return False
        finally:
            self._etags.clear()
        return True

    def post(
        self, step: int, counts: Any, layers: Iterable[int] | None = None, *, run: str | None = None
    ) -> Receipt:
        """Posts one step, ``counts[layers, experts]``. ``layers`` are the layers' real ids, by default 0, 1,
        2, .. .
        """
        return self.post_steps([(step, counts)], layers, run=run)

    def post_steps(
        self,
        steps: Iterable[tuple[int, Any]],
        layers: Iterable[int] | None = None,
        *,
        binary: bool = True,
        run: str | None = None,
    ) -> Receipt:
        """Posts several steps at once; ``binary=False`` as JSON. Returns how many were new, known, and are
        not processed yet.

        ``run`` is the run of these steps, instead of the client's.
        """
        rows = [(int(step), _rows(counts)) for step, counts in steps]
        if not rows:
            raise ValueError("no steps: expected one at least")
        ids = list(layers) if layers is not None else list(range(len(rows[0][1])))
        if binary:
            body, kind = encode(rows, ids, self.phase), CONTENT_TYPE
        else:
            listed = [{"step": step, "counts": [list(row) for row in counts]} for step, counts in rows]
            body = json.dumps({"phase": self.phase, "layers": ids, "steps": listed}).encode()
            kind = "application/json"
        run = self.run if run is None else _run_id(run)
        query = "" if run is None else f"?run={run}"
        return json.loads(self._retried("POST", f"/loads{query}", body, kind)[1])

    def plan(self, format: str = "evenkeel", wait: float = 0.0) -> Plan | None:
        """Returns the current plan.

        ``None`` means that there is no plan yet, or that it is the last fetched one in this format. The call
        waits up to ``wait`` seconds for another plan.
        """
        query = urllib.parse.urlencode({"phase": self.phase, "format": format, "wait": wait})
        known = {"if-none-match": self._etags[format]} if format in self._etags else {}
        try:
            headers, text = self._send("GET", f"/plan?{query}", None, known, self.timeout + wait)
        except ServiceError as error:
            if error.status in (304, 404):
                return None
            raise
        self._etags[format] = headers["etag"]
        ranks = [int(rank) for rank in headers["evenkeel-ranks"].split(",")]
        return Plan(int(headers["evenkeel-plan-version"]), text, ranks, headers["etag"])

    def rank_down(self, rank: int) -> RankChangeResponse:
        """Plans without a lost rank and returns the decisions."""
        return json.loads(self._send("POST", f"/ranks/{int(rank)}/down", b"", JSON, 300.0)[1])

    def rank_up(self, rank: int) -> RankChangeResponse:
        """Plans with a restored rank and returns the decisions."""
        return json.loads(self._send("POST", f"/ranks/{int(rank)}/up", b"", JSON, 300.0)[1])

    def state(self) -> ModelStatus:
        """Returns the state of the model."""
        return json.loads(self._send("GET", "", None, {}, self.timeout)[1])

    def _retried(self, method: str, path: str, body: bytes | None, kind: str) -> tuple[Any, str]:
        give_up, pause = time.monotonic() + self.patience, 0.05
        while True:
            try:
                return self._send(method, path, body, {"content-type": kind}, self.timeout)
            except ServiceError as error:
                if error.status not in (408, 429, 503) or time.monotonic() + pause > give_up:
                    raise
            except (OSError, http.client.HTTPException):
                if time.monotonic() + pause > give_up:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> tuple[Any, str]:
        request = urllib.request.Request(
            self.base + path, data=body, headers={**self._headers, **headers}, method=method
        )
        try:
            with self._opener.open(request, timeout=timeout) as reply:
                return reply.headers, reply.read().decode()
        except _transport.RedirectRefused as refused:
            raise ServiceError(refused.status, str(refused), "the service's own address as url") from None
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                refusal = json.loads(text)
                raise ServiceError(error.code, refusal["error"], refusal["expected"]) from None
            except (ValueError, KeyError, TypeError):
                raise ServiceError(error.code, text.strip() or error.reason) from None


class Background:
    """Poster with its own thread, whose ``put`` never waits.

    >>> with Background(client) as loads:
    ...     loads.put(step, counts)

    Up to ``most`` steps wait. Further ones are dropped.

    The run id is ``run``, otherwise the client's, otherwise a generated one. A generated id is replaced when
    the step counter restarts. It has restarted if a step is not above the first one of the run, or is more
    than ``most`` below the last one. So each start of the engine is a new run, in this process or another.

    ``posted`` counts the steps that the service has accepted, ``dropped`` all others. ``refused`` counts the
    part of ``dropped`` that failed when it was posted. ``error`` is the last reason.
    """

    def __init__(self, client: Client, most: int = 256, *, run: str | None = None) -> None:
        self.client = client
        self.posted = 0
        self.dropped = 0
        self.refused = 0
        self.error: Exception | None = None
        stated = client.run if run is None else _run_id(run)
        self.run = _fresh_run() if stated is None else stated
        self._stated = stated is not None
        self._most = most
        self._first: int | None = None
        self._last = 0
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[int, Any, list[int] | None, str] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="evenkeel-loads", daemon=True)
        self._thread.start()

    def put(self, step: int, counts: Any, layers: Iterable[int] | None = None) -> bool:
        """Enqueues a step. Returns False if the step was dropped. ``counts`` is copied."""
        rows, ids = _rows(counts), None if layers is None else list(layers)
        with self._lock:
            if not self._stated and self._restarts(step):
                self.run, self._first = _fresh_run(), None
            self._first = step if self._first is None else self._first
            self._last = step
            try:
                self._queue.put_nowait((step, rows, ids, self.run))
                return True
            except queue.Full:
                self.dropped += 1
                self.error = queue.Full(f"step {step}: {self._most} steps wait already, the service is slow or away")
                return False

    def close(self) -> None:
        """Posts the waiting steps and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restarts(self, step: int) -> bool:
        """Returns whether the engine's counter restarted. A second post of the last step is a repetition."""
        if self._first is None or step == self._last:
            return False
        return step <= self._first or step < self._last - self._most

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            step, rows, layers, run = item
            try:
                self.client.post(step, rows, layers, run=run)
                with self._lock:
                    self.posted += 1
            except Exception as error:  # noqa: BLE001 -- the model continues without posted loads
                with self._lock:
                    self.error = error
                    self.dropped += 1
                    self.refused += 1


def encode(steps: list[tuple[int, Any]], layers: list[int], phase: str = "all") -> bytes:
    """Encodes steps ``(step, counts[layers, experts])`` in the binary format of docs/serve.md."""
    rows = [(step, _rows(counts)) for step, counts in steps]
    experts = len(rows[0][1][0]) if rows and rows[0][1] else 0
    out = bytearray(struct.pack("<4sHBBIII", b"EKLD", 1, PHASES.index(phase), 0, len(layers), experts, len(rows)))
    out += struct.pack(f"<{len(layers)}I", *layers)
    for step, counts in rows:
        if len(counts) != len(layers) or any(len(row) != experts for row in counts):
            raise ValueError(f"step {step}: expected counts of {len(layers)} layers x {experts} experts")
        packed = b"".join(struct.pack(f"<{experts}I", *row) for row in counts)
        out += struct.pack("<QI", step, len(packed)) + packed
    return bytes(out)


def _run_id(run: str) -> str:
    if not RUN_ID.fullmatch(run):
        raise ValueError(f"run {run!r}: expected 1 to 64 letters, digits, '-', '_' and '.'")
    return run


def _fresh_run() -> str:
    return uuid.uuid4().hex


def _rows(counts: Any) -> list[list[int]]:
    """Returns nested lists of whole numbers from lists, NumPy arrays or torch tensors on any device."""
    if hasattr(counts, "tolist"):
        counts = counts.tolist()
    rows = [[int(count) for count in row] for row in counts]
    if any(count < 0 or count > 0xFFFF_FFFF for row in rows for count in row):
        raise ValueError("counts: expected whole numbers from 0 to 2**32 - 1")
    return rows
