"""Redis URLs: how to create a client, which connects at first use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from pay88_adapters.core.secret import Secret

_TIMEOUT = 1.0  # seconds of the connect timeout and of the read timeout

FORMS = (
    "store (PAY88_STORE) must be redis://[user:password@]host[:port][/db], redis+sentinel://, redis+cluster:// or"
    " unix://, with documented parameters: percent-encode the password"
)


class Plan(NamedTuple):
    """How to connect to a server."""

    connect: Callable[[], Any]
    where: str
    """For messages: no user, no password."""
    prefix: str


def parse(url: str) -> Plan:
    """Parse *url*.

    Raises:
        ValueError: It has none of the `FORMS`. The error's text may quote the password.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    prefix = query.pop("prefix", "pay88:")
    credentials, _, netloc = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    scheme, _, kind = parts.scheme.partition("+")
    link = _link(query, tls=scheme == "rediss")
    login = {"username": unquote(user) or None, "password": Secret(unquote(password)) or None}
    path = unquote(parts.path)
    db = query.pop("db", "") if scheme == "unix" else ""
    names = ("username", "password") if kind == "sentinel" else ()
    sentinel_login = {name: Secret(query.pop(f"sentinel_{name}", "")) or None for name in names}
    # Braces in a prefix would be a hash tag, and stars a pattern.
    if query or parts.fragment or not re.fullmatch(r"[\w.:/-]*", prefix, re.ASCII):
        raise ValueError("unknown parameters")
    match scheme, kind:
        case "unix", "" if not netloc and path.strip("/"):
            connect = partial(_one, unix_socket_path=path, db=_number(db))
        case "redis" | "rediss", "":
            [(host, port)] = _hosts(netloc, 6379)
            connect = partial(_one, host=host, port=port, db=_number(path[1:]))
        case "redis" | "rediss", "sentinel":
            service, _, db = path[1:].partition("/")
            connect = partial(_sentinel, _hosts(netloc, 26379), _name(service), link | sentinel_login, db=_number(db))
        case "redis" | "rediss", "cluster" if not path.strip("/"):
            connect = partial(_cluster, _hosts(netloc, 6379))
        case _:
            raise ValueError("unknown scheme or path")
    return Plan(partial(connect, **link, **login), f"{parts.scheme}://{netloc or path}", prefix)


def _link(query: dict[str, str], *, tls: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_connect_timeout": _TIMEOUT,
        "socket_timeout": _TIMEOUT,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),  # redis-py would retry for long; _Server.run() retries once
        "protocol": 2,  # spares a greeting that old servers and proxies do not know
    }
    if tls:
        options |= {"ssl": True, "ssl_check_hostname": query.get("ssl_cert_reqs") != "none"}
        names = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
        options |= {name: query.pop(name) for name in names if name in query}
    return options


def _one(**options: Any) -> Any:
    return redis.Redis(**options)


def _sentinel(hosts: Sequence[tuple[str, int]], service: str, link: dict[str, Any], **options: Any) -> Any:
    sentinel = cast("Any", Sentinel)(hosts, 0, link)
    return sentinel.master_for(service, **options)


def _cluster(hosts: Sequence[tuple[str, int]], **options: Any) -> Any:
    if int(redis.__version__.split(".")[0]) < 6:  # later versions read it off `retry`
        options["cluster_error_retry_attempts"] = 0
    nodes: list[Any] = [cast("Any", ClusterNode)(*each) for each in hosts]
    return RedisCluster(startup_nodes=nodes, **options)


def _hosts(netloc: str, port: int) -> list[tuple[str, int]]:
    parts = [urlsplit(f"//{each}") for each in netloc.split(",")]
    return [(_name(each.hostname), each.port or port) for each in parts]


def _name(text: str | None) -> str:
    if not text:
        raise ValueError("a host or service is missing")
    return text


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{0,5}", text, re.ASCII):
        raise ValueError("no number")
    return int(text or 0)
