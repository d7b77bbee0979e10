"""How much of what could be tried is tried: a share in the suite, all in ``make simulate``."""

import os

ALL = os.environ.get("SIMULATE") == "all"
