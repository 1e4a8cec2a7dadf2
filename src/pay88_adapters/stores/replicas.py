"""Writes that the replicas of a Redis server have before their caller continues.

A failover loses what the new primary has not received. For a unit of the token budget, that could be one token request
too many: so it is sent only when the replicas have the unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.cluster import RedisCluster
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from pay88_adapters.core.secret import clear_traceback_locals

T = TypeVar("T")

WAITS = 3
"""How often ``WAIT`` is sent at most: no unit waits for a replica that lags for more than a second."""

_TIMEOUT = 400  # milliseconds of one WAIT, less than the timeout of the connection
_REPLICA = (b"slave", "slave")  # the role of a replica
_DEMOTED = ("UNBLOCKED", "replica instances")  # in the errors of WAIT while the server becomes a replica, and after it


class Replication:
    """Waits for the replicas of one server, or of the nodes of one cluster."""

    def __init__(self) -> None:
        self._denied = False

    def run(self, client: Any, key: str, operation: Callable[[Any], T]) -> T:
        """Return the result of *operation*, which writes *key*, once the replicas have what it wrote.

        If they do not have it in time, or the server denies the commands for this, the result is returned as well.
        An error during the wait is raised, because the operation may be lost.
        """
        if self._denied:
            return operation(client)
        try:
            node = _node(client, key)
            with node.client() as connection:  # WAIT is about the writes of its own connection
                result = operation(connection)
                self._wait(connection)
                return result
        except (MovedError, AskError, TryAgainError, ClusterDownError) as error:
            clear_traceback_locals(error)
            return operation(client)  # the client of the cluster follows the slot

    def _wait(self, connection: Any) -> None:
        try:
            role = connection.role()
            demoted = role[0] in _REPLICA
            replicas = 0 if demoted else len(role[2])
            for _ in range(WAITS):
                if demoted or connection.wait(replicas, _TIMEOUT) >= replicas:
                    break
        except (redis.ResponseError, TypeError, LookupError) as error:
            clear_traceback_locals(error)
            demoted = any(text in str(error) for text in _DEMOTED)
            self._denied = not demoted  # no permission, or a proxy without these commands
        if demoted:
            raise redis.ConnectionError("the server is no primary any longer")


def _node(client: Any, key: str) -> Any:
    """Return the client of the server that has *key*."""
    if not isinstance(client, RedisCluster):
        return client
    cluster: Any = client  # whose methods are not fully typed
    return cluster.get_redis_connection(cluster.get_node_from_key(key))
