"""Stand-ins for a manager: the activated one, or an error after unpickling without a manager."""

from __future__ import annotations

from pay88_adapters.core.arguments import class_of
from pay88_adapters.core.endpoint import SANDBOX_URL, Endpoint
from pay88_adapters.core.errors import ConfigurationError

from .manager import PROCESS, TokenManager
from .overrides import current_manager


def check_manager(manager: object) -> None:
    """Check the manager argument of an adapter.

    Raises:
        ConfigurationError: It is not a manager.
    """
    if not isinstance(manager, (TokenManager, _StandIn)):
        raise ConfigurationError(
            f"manager must be a TokenManager or an ActivatedManager, not {class_of(manager)}: pass"
            " TokenManager(credentials) or TokenManager.from_env()"
        )


class _StandIn:
    """Stand-in for a client's manager: requests to its base URL use the activated manager, or fail."""

    def __init__(self, base_url: str) -> None:
        self._endpoint = Endpoint.parse(base_url)

    @property
    def base_url(self) -> str:
        """The checked base URL, without a slash at its end."""
        return self._endpoint.base_url

    def for_request(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Do the same as :meth:`TokenManager.for_request`.

        Raises:
            ConfigurationError: The request goes to :attr:`base_url`, and no manager of that URL is activated.
        """
        active = current_manager(self)
        if active is None:  # unmanaged()
            return None
        if isinstance(active, TokenManager):
            manager = active.for_request(scheme, host, port, path, authorization)
            if manager is not None:
                return manager
        if self._endpoint.covers(scheme, host, port, path, authorization):
            raise ConfigurationError(self._problem(active if isinstance(active, TokenManager) else None))
        return None

    def _problem(self, active: TokenManager | None) -> str:
        raise NotImplementedError


class ActivatedManager(_StandIn):
    """The manager of a client that serves several merchants: ``attach(client, ActivatedManager())``.

    Requests to *base_url* use the manager that is :meth:`~TokenManager.activated` around them. Without one they raise
    :class:`ConfigurationError` and are not sent, so that none is sent for the wrong merchant. Requests in
    ``unmanaged()`` and those with their own ``Bearer`` header pass through unchanged.

    Args:
        base_url: ``SANDBOX_URL`` unless given.

    Raises:
        ConfigurationError: The URL is invalid.
    """

    def __init__(self, base_url: str = SANDBOX_URL) -> None:
        super().__init__(base_url)

    def _problem(self, active: TokenManager | None) -> str:
        if active is not None:
            return (
                f"request not sent: the client is for {self.base_url}, the activated manager for {active.base_url};"
                " activate one for the same base URL"
            )
        return (
            f"request to {self.base_url} not sent: no manager is activated here; make it inside of"
            " `with manager.activated():`, or of unmanaged()"
        )

    def __reduce__(self) -> tuple[type[ActivatedManager], tuple[str]]:
        return ActivatedManager, (self.base_url,)

    def __repr__(self) -> str:
        return f"<ActivatedManager {self.base_url}>"


AnyManager = TokenManager | ActivatedManager
"""Manager types that a client can be attached to."""


class UnavailableManager(_StandIn):
    """Replaces a manager after unpickling: requests to its base URL fail, all others pass through unchanged."""

    def __init__(self, pickle_key: tuple[str, str]) -> None:
        self.pickle_id, base_url = pickle_key
        super().__init__(base_url)

    def _problem(self, active: TokenManager | None) -> str:
        return (
            "this client was unpickled without its TokenManager (managers hold the API key and cannot be pickled):"
            " make a TokenManager in this process and attach() it"
        )


def pickle_key(manager: TokenManager | _StandIn) -> tuple[str, str] | ActivatedManager:
    """Return the key by which :func:`resolve` finds *manager*, in this process and in those forked from it."""
    if isinstance(manager, ActivatedManager):
        return manager
    if isinstance(manager, UnavailableManager):
        return manager.pickle_id, manager.base_url
    assert isinstance(manager, TokenManager)
    return PROCESS.pickle_id(manager), manager.base_url


def resolve(pickle_key: tuple[str, str] | ActivatedManager) -> TokenManager | ActivatedManager | UnavailableManager:
    """Return the manager with this *pickle_key*, or its stand-in in another process."""
    if isinstance(pickle_key, ActivatedManager):
        return pickle_key
    return PROCESS.unpickled(pickle_key[0]) or UnavailableManager(pickle_key)
