"""The rules: what a token, a response or an error means, and what to do next.

No I/O, clock, lock or chance; ``secret`` and ``tracebacks`` edit exceptions.

Of requests: ``machine`` (with the table in ``decisions``), ``retry``, ``breaker``. Of fetches: ``fetch_machine``,
``forced_refreshes``, ``cooldown``, ``pending``. Of responses of the token endpoint: ``wire``. The numbers: ``policy``.

May import: only itself; no clock, lock, random numbers, thread, socket, environment or HTTP library.
Imported by: every other layer.
"""
