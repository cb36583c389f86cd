"""HTTP for the client of ``evenkeel serve``, restricted to one origin, with the standard library alone.

``opener(url, context)`` opens requests to the origin of ``url``. It refuses a redirect to another scheme,
host or port, so that no header leaves that origin. It ignores the proxies of the environment for loopback
addresses and for the hosts in ``NO_PROXY``.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import urllib.parse
import urllib.request
from typing import Any

DEFAULT_PORTS = {"http": 80, "https": 443}
# Only under these statuses does a POST remain a POST after a redirect within the origin.
KEEPS_METHOD = (307, 308)


class RedirectRefused(Exception):
    """A redirect that is not followed: ``status``, and the reason ``why``."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def origin(url: str) -> tuple[str, str, int | None]:
    """Returns scheme, host and port of an address, the default port included. Raises ValueError for an
    invalid port.
    """
    parts = urllib.parse.urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or DEFAULT_PORTS.get(scheme)


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, by its name or address alone. No name is resolved."""
    name = host.lower().rstrip(".")
    address = _address(host)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback or address.is_unspecified


def bypasses_proxy(host: str, port: int | None, no_proxy: str) -> bool:
    """Returns whether ``no_proxy`` lists a host.

    Its entries are names, which include all names below them, ``.name``, addresses, networks, and ``*``. Each
    may have a ``:port``.
    """
    name, address = host.lower().rstrip("."), _address(host)
    for entry in no_proxy.replace(",", " ").lower().split():
        if entry == "*":
            return True
        listed, listed_port = _host_and_port(entry)
        if listed_port is not None and listed_port != port:
            continue
        if address is not None:
            try:
                network = ipaddress.ip_network(listed, strict=False)
            except ValueError:
                continue
            if network.version == address.version and address in network:
                return True
        elif (listed := listed.lstrip("*").strip(".")) and (name == listed or name.endswith("." + listed)):
            return True
    return False


def proxies(url: str) -> dict[str, str]:
    """Returns the proxies of the environment for an address; none if the address bypasses them."""
    _, host, port = origin(url)
    no_proxy = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if is_loopback(host) or bypasses_proxy(host, port, no_proxy):
        return {}
    return urllib.request.getproxies()


def opener(url: str, context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """Returns an opener for one origin."""
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies(url)), urllib.request.HTTPSHandler(context=context), _SameOrigin(url)
    )


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Redirect handler that follows redirects within one origin and raises RedirectRefused for others."""

    def __init__(self, url: str) -> None:
        self.origin = origin(url)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except (ValueError, RedirectRefused) as error:
            fp.close()
            if isinstance(error, ValueError):
                raise RedirectRefused(code, f"redirected to {headers.get('location')!r}, which is no address") from None
            raise

    # Python before 3.11 does not handle 308.
    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if origin(newurl) != self.origin or "@" in urllib.parse.urlsplit(newurl).netloc:
            raise RedirectRefused(code, f"redirected to {newurl!r}, which is another origin: nothing was sent there")
        method = req.get_method()
        if method not in ("GET", "HEAD") and code not in KEEPS_METHOD:
            raise RedirectRefused(code, f"redirected to {newurl!r} by a status that turns {method} into GET")
        return urllib.request.Request(
            newurl.replace(" ", "%20"), data=req.data, headers=req.headers, method=method, unverifiable=True
        )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """Splits an entry of ``NO_PROXY`` into host and port. An IPv6 address has a port only behind brackets."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    else:
        host, port = entry, ""
    return host, int(port) if port.isdecimal() else None
