"""The rules: what a token, a response or an error means, and what to do next. Pure functions of their arguments.

May import: only itself; no clock, lock, random numbers, thread, socket, environment or HTTP library.
Imported by: every other layer.
"""
