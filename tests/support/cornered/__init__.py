"""Cases that corner the runners, each in its own process: ``python -X dev -W error -m support.cornered CASE STACK``.

A case ends without an error, leaves nothing behind, and prints nothing. It waits for its preconditions: requests are
held at the server, and requests that wait for a token are counted.
"""

from . import carriers, credentials, exits, forks, leaders, strikes
from .shared import ALONE, CASES, DEADLINE, EXITS, FUNCTIONS

__all__ = [
    "ALONE",
    "CASES",
    "DEADLINE",
    "EXITS",
    "FUNCTIONS",
    "carriers",
    "credentials",
    "exits",
    "forks",
    "leaders",
    "strikes",
]
