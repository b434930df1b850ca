"""What clients did and saw: operations with when they were called and when they returned.

Times are the simulated world's, in seconds.  An operation whose outcome its client never learned has
``outcome`` UNKNOWN and counts as possibly taking effect at any time after its call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Known(Enum):
    OK = "ok"
    NOT_APPLIED = "not-applied"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """``kind`` put, get, cas, add, ...; ``argument`` and ``result`` as that kind means them."""

    client: str
    kind: str
    key: str
    argument: Any
    result: Any
    called: float
    returned: float
    known: Known

    @property
    def latest(self) -> float:
        """It took effect before this time, if it did."""
        return math.inf if self.known is Known.UNKNOWN else self.returned


class History:
    """Operations in the order in which they ended; unknown ones are added when given up."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)

    def of_key(self, key: str) -> list[Operation]:
        return [operation for operation in self.operations if operation.key == key]

    def named_keys(self) -> list[str]:
        return sorted({operation.key for operation in self.operations})
