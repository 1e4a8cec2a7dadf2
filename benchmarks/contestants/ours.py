"""The manager that is measured."""

from __future__ import annotations

from benchmarks.service import Service
from pay88_adapters import Credentials, TokenManager, TokenPolicy


def manager(service: Service, **options: object) -> TokenManager:
    """Return one with default settings; only the budget is larger, since the measurements share the service.

    A shorter lifetime than 88Pay's needs shorter margins.
    """
    scale = min(service.lifetime / 60, 1.0)
    policy = TokenPolicy(
        reuse_for=service.lifetime - 10 * scale,
        margin=10 * scale,
        refresh_ahead=5 * scale,
        expiry_skew=scale,
        limits=("1000000/minute", "1000000/hour"),
    )
    credentials = Credentials(service.api_key, service.merchant_id)
    made: TokenManager = TokenManager(credentials, base_url=service.url, policy=policy, **options)  # type: ignore[arg-type]
    return made
