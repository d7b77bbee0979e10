"""Everything that is fuzzed."""

from __future__ import annotations

from typing import Final

from tests.fuzz.calls import CALLS
from tests.fuzz.files import FILES
from tests.fuzz.target import Target

TARGETS: Final[tuple[Target, ...]] = (*FILES, *CALLS)
BY_NAME: Final = {target.name: target for target in TARGETS}
