"""A program of a user's without any client, for type checkers: what they must infer, and what they must reject."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING

from pay88_adapters import Credentials, Stats, Token, TokenManager, unmanaged

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from typing_extensions import assert_type

manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"))


@manager.activated()
def charge(amount: int) -> str:
    """Charge an amount."""
    return str(amount)


@unmanaged()
async def look(amount: int) -> str:
    """Look at an amount."""
    return str(amount)


async def rotating() -> Credentials:
    """Read the credentials."""
    return Credentials.from_env()


async def use() -> None:
    """Use all of it."""
    charge_is: Callable[[int], str] = charge
    look_is: Callable[[int], Coroutine[Any, Any, str]] = look
    assert_type((charge_is(1), await look_is(1)), tuple[str, str])
    charge("1")  # type: ignore[arg-type]
    assert_type(TokenManager.shared(rotating), TokenManager)
    token = await manager.aget_token(min_validity=5)
    assert_type(token, Token)
    assert_type(token.headers(), dict[str, str])
    assert_type(manager.stats(), Stats)
    async with manager as entered:
        assert_type(entered, TokenManager)
    with manager.activated() as nothing:
        assert_type(nothing, None)
    TokenManager("sk_test_1")  # type: ignore[arg-type]
