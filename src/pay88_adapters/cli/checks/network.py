"""Checks of the network: DNS, TCP, TLS and the service's clock."""

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

_TIMEOUT = 5.0  # seconds, of each step
_DRIFT = 30.0  # seconds of tolerated clock skew
_DAY = 86_400

_EXPIRED, _NOT_YET, _WRONG_HOST = 10, 9, (62, 64)  # of OpenSSL's X509_V_ERR_*: a name, an address
_UNTRUSTED = (18, 19, 20, 21)


class Network:
    """The network between this host and the service.

    Args:
        endpoint: The base URL; ``None`` skips all checks.
    """

    def __init__(self, endpoint: Endpoint | None) -> None:
        self._endpoint = endpoint
        self._ahead: float | None = None  # of the service's clock, in seconds
        self.reached = False
        """Whether the connection to the service works."""

    def check(self) -> Iterator[Finding]:
        """Check DNS, TCP and TLS, in this order."""
        if self._endpoint is None:
            yield from (skipped(name, "no valid base URL") for name in ("DNS", "TCP", "TLS"))
            return
        name = _resolve(self._endpoint)
        yield name
        if name.state == "failed":
            yield from (skipped(each, "the host name has no address") for each in ("TCP", "TLS"))
            return
        try:
            plain = socket.create_connection((self._endpoint.host, self._endpoint.port), _TIMEOUT)
        except OSError as error:
            yield _connection_failure(self._endpoint, error)
            yield skipped("TLS", "no connection")
            return
        with plain:
            host, port = plain.getpeername()[:2]
            yield ok("TCP", f"connected to {host} port {port}")
            yield self._secure(self._endpoint, plain)

    def _secure(self, endpoint: Endpoint, plain: socket.socket) -> Finding:
        if endpoint.scheme == "http":
            self._read_date(endpoint, plain)
            return skipped("TLS", "http:// on the loopback interface")
        context = create_urllib3_context()  # the verification of the token request
        context.load_default_certs()
        try:
            with context.wrap_socket(plain, server_hostname=endpoint.host) as secure:
                version, certificate = secure.version(), secure.getpeercert()
                self._read_date(endpoint, secure)
        except (OSError, ValueError) as error:
            return _tls_failure(endpoint, error)
        left = (ssl.cert_time_to_seconds(str((certificate or {})["notAfter"])) - time.time()) // _DAY
        return ok("TLS", f"{version}, certificate valid for {left:.0f} days")

    def _read_date(self, endpoint: Endpoint, connected: socket.socket) -> None:
        """Read the service's clock from the ``Date`` header of a response. This is not a token request."""
        self.reached = True
        connection = HTTPConnection(endpoint.host, endpoint.port, timeout=_TIMEOUT)
        connection.sock = connected
        with suppress(OSError, HTTPException, ValueError, TypeError):
            sent_at = time.time()
            connection.request("HEAD", "/", headers={"Connection": "close"})
            date = connection.getresponse().getheader("Date")
            middle = (sent_at + time.time()) / 2
            self._ahead = parsedate_to_datetime(str(date)).timestamp() + 0.5 - middle

    def clock(self, store_ahead: float | None) -> Finding:
        """Compare this host's clock with those of 88Pay and of the store."""
        ahead = {"88Pay's": self._ahead, "the store's": store_ahead}
        known = {name: seconds for name, seconds in ahead.items() if seconds is not None}
        if not known:
            return skipped("clock", "no reference clock available")
        difference = ", ".join(f"{_clock_difference(seconds)} {name}" for name, seconds in known.items())
        if any(abs(seconds) > _DRIFT for seconds in known.values()):
            return failed(
                "clock",
                f"this host's clock is {difference}",
                "set it with NTP, or correct the other clock if that one is wrong",
            )
        return ok("clock", difference)


def _clock_difference(ahead: float) -> str:
    if abs(ahead) < 1:
        return "within a second of"
    return f"{abs(ahead):,.0f} s {'behind' if ahead > 0 else 'ahead of'}"


def _resolve(endpoint: Endpoint) -> Finding:
    try:
        found = run_with_timeout(lambda: socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError, StoreError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        remedy = "check the base URL, and the DNS resolver and network of this host"
        return failed("DNS", f"{endpoint.host} cannot be resolved ({why})", remedy)
    addresses = ", ".join(sorted({str(each[4][0]) for each in found}))
    is_address = addresses == endpoint.host
    return ok("DNS", f"{endpoint.host} is an IP address" if is_address else f"{endpoint.host} resolves to {addresses}")


def _connection_failure(endpoint: Endpoint, error: OSError) -> Finding:
    where = f"{endpoint.host} port {endpoint.port}"
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)]
    proxied = f"; {proxies[0]} is set, but this check uses no proxy" if proxies else ""
    if isinstance(error, ConnectionRefusedError):
        return failed("TCP", f"{where} rejected the connection", f"check the base URL and its port{proxied}")
    if isinstance(error, TimeoutError):
        return failed(
            "TCP", f"no response of {where} within {_TIMEOUT:g} s", f"check the base URL and firewalls{proxied}"
        )
    return failed("TCP", f"{where} cannot be reached ({error.strerror})", f"check this host's network{proxied}")


def _tls_failure(endpoint: Endpoint, error: Exception) -> Finding:
    if not isinstance(error, ssl.SSLCertVerificationError):
        why = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
        return failed(
            "TLS", f"handshake failed ({why})", "check that the port of the base URL speaks TLS, and check proxies"
        )
    code, why = error.verify_code, redact(error.verify_message)
    if code in _WRONG_HOST:
        return failed("TLS", f"the certificate belongs to another host ({why})", "check the base URL and proxies")
    if code in (_EXPIRED, _NOT_YET):
        return failed(
            "TLS",
            f"the certificate is not valid now ({why})",
            "check this host's clock; if it is right, report it to the owner of the certificate",
        )
    if code in _UNTRUSTED:
        remedy = "if you trust the issuer, set SSL_CERT_FILE to its file; if not, a proxy may intercept the connection"
        return failed("TLS", f"certificate not trusted ({why})", remedy)
    return failed("TLS", f"the certificate of {endpoint.host} is invalid ({why})", "report it to the owner of the host")
