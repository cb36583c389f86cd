"""Posts loads to a running ``evenkeel serve`` and fetches its plans. The standard library alone; NumPy and torch are taken as they are.

In a serving stack, with counts per logical expert summed over the ranks (one process posts):

>>> from evenkeel.client import Client
>>> client = Client("http://127.0.0.1:8787", "deepseek-r1", phase="decode")
>>> client.create(ranks=32, redundant=32, model="deepseek-r1")   # once; the same again changes nothing
>>> client.post(step, counts)                                    # counts[layers, experts], every step or every few
>>> plan = client.plan(wait=60)                                  # None until there is another plan than the last one fetched

``post`` waits for the reply (the step is durable then). ``Background`` posts from a thread of its own, so that the model never
waits; steps that it cannot get rid of in time are dropped and counted.
"""

from __future__ import annotations

import json
import queue
import ssl
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Iterable, NamedTuple

PHASES = ("all", "prefill", "decode")
CONTENT_TYPE = "application/x-evenkeel-loads"


class ServiceError(Exception):
    """The service refused: ``status``, ``error`` and ``expected`` say what and why."""

    def __init__(self, status: int, error: str, expected: str = "") -> None:
        super().__init__(f"{error} ({status})" + (f", expected {expected}" if expected else ""))
        self.status = status
        self.error = error
        self.expected = expected


class Plan(NamedTuple):
    """A plan as it was fetched: ``text`` in the format asked for, ``ranks`` the real ranks by their numbers in it."""

    version: int
    text: str
    ranks: list[int]
    etag: str


class Client:
    """One phase of one model of a service.

    ``phase`` is all, prefill or decode. ``token`` is the bearer token, ``context`` an ``ssl.SSLContext`` for https. Replies are
    waited for ``timeout`` seconds; where the service cannot be reached or asks for patience, a post is tried again for
    ``patience`` seconds, with growing pauses. That is safe: a step counts once however often it is posted.
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
    ) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r}: expected http://HOST:PORT or https://HOST:PORT")
        self.base = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        self.phase = phase
        self.timeout = timeout
        self.patience = patience
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._context = context
        self._etags: dict[str, str] = {}

    def create(self, ranks: int, redundant: int = 0, **more: Any) -> dict[str, Any]:
        """Makes the model, if it is not there; ``more`` are nodes, groups, model, gpu, link_gbps. Its state."""
        body = json.dumps({"ranks": ranks, "redundant": redundant, **more}).encode()
        return json.loads(self._retried("PUT", "", body, "application/json")[1])

    def post(self, step: int, counts: Any, layers: Iterable[int] | None = None) -> dict[str, int]:
        """Posts one step: ``counts[layers, experts]``; ``layers`` are their real ids, 0, 1, 2, .. unless given."""
        return self.post_steps([(step, counts)], layers)

    def post_steps(
        self, steps: Iterable[tuple[int, Any]], layers: Iterable[int] | None = None, *, binary: bool = True
    ) -> dict[str, int]:
        """Posts several steps at once; ``binary=False`` as JSON. How many were new, known, and still wait to be looked at."""
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
        return json.loads(self._retried("POST", "/loads", body, kind)[1])

    def plan(self, format: str = "evenkeel", wait: float = 0.0) -> Plan | None:
        """The plan in force, or None if that is the one fetched last (in this format) or there is none yet.

        Waits up to ``wait`` seconds for another one.
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

    def rank_down(self, rank: int) -> dict[str, Any]:
        """Plans without a rank that is gone; the decisions."""
        return json.loads(self._send("POST", f"/ranks/{int(rank)}/down", b"", {}, 300.0)[1])

    def rank_up(self, rank: int) -> dict[str, Any]:
        """Plans with a rank that is back; the decisions."""
        return json.loads(self._send("POST", f"/ranks/{int(rank)}/up", b"", {}, 300.0)[1])

    def state(self) -> dict[str, Any]:
        """How the model stands."""
        return json.loads(self._send("GET", "", None, {}, self.timeout)[1])

    def _retried(self, method: str, path: str, body: bytes, kind: str) -> tuple[Any, str]:
        give_up, pause = time.monotonic() + self.patience, 0.05
        while True:
            try:
                return self._send(method, path, body, {"content-type": kind}, self.timeout)
            except ServiceError as error:
                if error.status not in (408, 429, 503) or time.monotonic() + pause > give_up:
                    raise
            except (urllib.error.URLError, OSError):
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
            with urllib.request.urlopen(request, timeout=timeout, context=self._context) as reply:
                return reply.headers, reply.read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                told = json.loads(text)
                raise ServiceError(error.code, told["error"], told["expected"]) from None
            except (ValueError, KeyError, TypeError):
                raise ServiceError(error.code, text.strip() or error.reason) from None


class Background:
    """Posts from a thread of its own: ``put`` never waits.

    >>> with Background(client) as loads:
    ...     loads.put(step, counts)

    Up to ``most`` steps wait; further ones are dropped. ``dropped`` counts those and the ones that the service refused, ``error`` is
    the last refusal.
    """

    def __init__(self, client: Client, most: int = 256) -> None:
        self.client = client
        self.dropped = 0
        self.error: Exception | None = None
        self._queue: queue.Queue[tuple[int, Any, list[int] | None] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="evenkeel-loads", daemon=True)
        self._thread.start()

    def put(self, step: int, counts: Any, layers: Iterable[int] | None = None) -> bool:
        """Hands a step over; False if it had to be dropped. ``counts`` is copied."""
        try:
            self._queue.put_nowait((step, _rows(counts), None if layers is None else list(layers)))
            return True
        except queue.Full:
            self.dropped += 1
            return False

    def close(self) -> None:
        """Posts what is waiting, and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self.client.post(*item)
            except Exception as error:  # noqa: BLE001 -- a model goes on without its loads being posted
                self.error = error
                self.dropped += 1


def encode(steps: list[tuple[int, Any]], layers: list[int], phase: str = "all") -> bytes:
    """Steps in the compact form that docs/serve.md describes: ``(step, counts[layers, experts])``."""
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


def _rows(counts: Any) -> list[list[int]]:
    """Nested lists of whole numbers, from lists, NumPy arrays or torch tensors on any device."""
    if hasattr(counts, "tolist"):
        counts = counts.tolist()
    rows = [[int(count) for count in row] for row in counts]
    if any(count < 0 or count > 0xFFFF_FFFF for row in rows for count in row):
        raise ValueError("counts: expected whole numbers from 0 to 2**32 - 1")
    return rows
