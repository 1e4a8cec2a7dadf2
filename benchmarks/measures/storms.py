"""Many callers at once: nobody has a token, or everybody's token is refused. The emulator runs beside them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.contestants import Call, contestant, is_async
from benchmarks.service import Service
from pay88_adapters.testing import Emulator, Hold, Latency

from . import on_a_loop

_LATENCY = 0.2  # seconds that the token endpoint takes


def storm(stack: str, row: str, callers: int, refused: bool) -> dict[str, Any]:
    """Return how many token requests the server saw, and how the calls ended."""
    with Emulator(token_limits=(), call_limits=()) as emulator:
        emulator.faults.add(Latency(_LATENCY), on="token", times=None)
        service = Service(emulator.url, emulator.api_key, emulator.merchant_id)
        made = contestant(stack, row)
        before = 0
        hold = Hold()

        def referee() -> None:
            """Let all calls arrive with the token there is, and refuse it."""
            hold.wait_for(callers, timeout=120)
            emulator.service.refuse_current_tokens()
            hold.release()

        def begin() -> None:
            nonlocal before, hold
            if refused:
                before = emulator.journal.token_requests
                hold = emulator.hold()
                threading.Thread(target=referee).start()

        if is_async(stack):
            ended = on_a_loop(lambda: _tasks(lambda: made.make(service), callers, refused, begin))
        else:
            ended = _threads(made.make(service), callers, refused, begin)
        return {"token requests": emulator.journal.token_requests - before, "ended": dict(ended)}


def _threads(call: Call, callers: int, warm: bool, begin: Callable[[], None]) -> Counter[str]:
    if warm:
        call()
    begin()
    ended: list[str] = []
    together = threading.Barrier(callers)

    def caller() -> None:
        together.wait()
        try:
            ended.append(str(call()))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is how its call ended
            ended.append(type(error).__name__)

    threading.stack_size(256 * 1024)
    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(ended)


async def _tasks(make: Callable[[], Call], callers: int, warm: bool, begin: Callable[[], None]) -> Counter[str]:
    call = make()
    if warm:
        await call()
    begin()
    results = await asyncio.gather(*(call() for _ in range(callers)), return_exceptions=True)
    return Counter(type(each).__name__ if isinstance(each, BaseException) else str(each) for each in results)
