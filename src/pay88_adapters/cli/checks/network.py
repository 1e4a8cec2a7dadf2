"""The way to the service: DNS, TCP, TLS, and what time it is over there."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException

from urllib3.util.ssl_ import create_urllib3_context

from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.secret import redact
from pay88_adapters.engine.store_link import run_with_timeout
from pay88_adapters.stores.base import StoreError

from .finding import Finding, failed, ok, skipped

_PATIENCE = 5.0  # seconds for each step
_DRIFT = 30.0  # seconds that clocks may be apart
_DAY = 86_400

_EXPIRED, _NOT_YET, _WRONG_HOST = 10, 9, (62, 64)  # of OpenSSL's X509_V_ERR_*: a name, an address
_UNTRUSTED = (18, 19, 20, 21)


class Network:
    """The way to the service.

    Args:
        endpoint: Where it is; ``None`` skips everything.
    """

    def __init__(self, endpoint: Endpoint | None) -> None:
        self._endpoint = endpoint
        self._ahead: float | None = None  # of the service's clock, in seconds
        self.reached = False
        """Whether the service can be talked to."""

    def check(self) -> Iterator[Finding]:
        """Check name, connection and certificate, one after another."""
        if self._endpoint is None:
            yield from (skipped(name, "there is no base URL") for name in ("DNS", "TCP", "TLS"))
            return
        name = _resolve(self._endpoint)
        yield name
        if name.state == "failed":
            yield from (skipped(each, "the name has no address") for each in ("TCP", "TLS"))
            return
        try:
            plain = socket.create_connection((self._endpoint.host, self._endpoint.port), _PATIENCE)
        except OSError as error:
            yield _unconnected(self._endpoint, error)
            yield skipped("TLS", "there is no connection")
            return
        with plain:
            host, port = plain.getpeername()[:2]
            yield ok("TCP", f"connected to {host} port {port}")
            yield self._secure(self._endpoint, plain)

    def _secure(self, endpoint: Endpoint, plain: socket.socket) -> Finding:
        if endpoint.scheme == "http":
            self._talk(endpoint, plain)
            return skipped("TLS", "http:// to this host itself")
        context = create_urllib3_context()  # as the token request verifies
        context.load_default_certs()
        try:
            with context.wrap_socket(plain, server_hostname=endpoint.host) as secure:
                version, ends_at = secure.version(), secure.getpeercert()
                self._talk(endpoint, secure)
        except (OSError, ValueError) as error:
            return _insecure(endpoint, error)
        left = (ssl.cert_time_to_seconds(str((ends_at or {})["notAfter"])) - time.time()) // _DAY
        return ok("TLS", f"{version}, with a certificate for {left:.0f} days more")

    def _talk(self, endpoint: Endpoint, connected: socket.socket) -> None:
        """Ask what time it is: any answer says so. This is no token request."""
        self.reached = True
        connection = HTTPConnection(endpoint.host, endpoint.port, timeout=_PATIENCE)
        connection.sock = connected
        with suppress(OSError, HTTPException, ValueError, TypeError):
            asked_at = time.time()
            connection.request("HEAD", "/", headers={"Connection": "close"})
            date = connection.getresponse().getheader("Date")
            middle = (asked_at + time.time()) / 2
            self._ahead = parsedate_to_datetime(str(date)).timestamp() + 0.5 - middle

    def clock(self, store_ahead: float | None) -> Finding:
        """Compare this host's clock with the service's and the store's."""
        ahead = {"service": self._ahead, "store": store_ahead}
        known = {name: seconds for name, seconds in ahead.items() if seconds is not None}
        if not known:
            return skipped("clock", "nobody was there to compare it with")
        said = ", ".join(f"{_apart(seconds)} the {name}'s" for name, seconds in known.items())
        if any(abs(seconds) > _DRIFT for seconds in known.values()):
            return failed(
                "clock", f"this host's clock is {said}", "set it, with NTP, or the other one if that is wrong"
            )
        return ok("clock", said)


def _apart(ahead: float) -> str:
    if abs(ahead) < 1:
        return "within a second of"
    return f"{abs(ahead):,.0f} s {'behind' if ahead > 0 else 'ahead of'}"


def _resolve(endpoint: Endpoint) -> Finding:
    try:
        found = run_with_timeout(lambda: socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError, StoreError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        remedy = "check the base URL, this host's resolver and its network"
        return failed("DNS", f"{endpoint.host} cannot be resolved ({why})", remedy)
    return ok("DNS", f"{endpoint.host} is {', '.join(sorted({str(each[4][0]) for each in found}))}")


def _unconnected(endpoint: Endpoint, error: OSError) -> Finding:
    where = f"{endpoint.host} port {endpoint.port}"
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)]
    proxied = f"; {proxies[0]} is for clients that are told to use it, and this is none" if proxies else ""
    if isinstance(error, ConnectionRefusedError):
        return failed("TCP", f"{where} refuses the connection", f"check the base URL and its port{proxied}")
    if isinstance(error, TimeoutError):
        return failed("TCP", f"{where} does not answer within {_PATIENCE:g} s", f"look for a firewall{proxied}")
    return failed("TCP", f"{where} cannot be reached ({error.strerror})", f"check this host's network{proxied}")


def _insecure(endpoint: Endpoint, error: Exception) -> Finding:
    if not isinstance(error, ssl.SSLCertVerificationError):
        why = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
        return failed("TLS", f"the handshake failed ({why})", "check that the base URL's port speaks TLS, and proxies")
    code, said = error.verify_code, redact(error.verify_message)
    if code in _WRONG_HOST:
        return failed("TLS", f"the certificate is another host's ({said})", "check the base URL and proxies")
    if code in (_EXPIRED, _NOT_YET):
        return failed(
            "TLS", f"the certificate is not valid now ({said})", "check this host's clock, then tell its owner"
        )
    if code in _UNTRUSTED:
        remedy = "if the issuer is one of yours, name its file in SSL_CERT_FILE; else something listens in"
        return failed("TLS", f"nobody who is trusted vouches for the certificate ({said})", remedy)
    return failed("TLS", f"the certificate of {endpoint.host} cannot be used ({said})", "tell its owner")
