"""Decides: what a token, a response or an error means, and what follows from it. Pure: values in, values out.

May import: nothing of this package but itself; no clock, lock, chance, thread, socket, environment or HTTP library.
Imported by: every other layer.
"""
