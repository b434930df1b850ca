"""Values by type: what is packed, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal

import pytest

from tauraft.codec import compile_codec


def test_an_int_is_a_float_when_packing_in_a_union_too() -> None:
    codec = compile_codec(float | None)
    packed = codec.pack(60)
    assert (packed, type(packed)) == (60.0, float)
    assert codec.pack(None) is None
    with pytest.raises(TypeError):
        codec.pack(True)
    assert type(compile_codec(float | int).pack(60)) is int


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Outer:
    number: int
    flag: bool | None
    words: tuple[str, ...]
    inner: Inner | None
    colour: Colour
    at: datetime
    kind: Literal["a", "b"]
    pairs: tuple[tuple[int, bytes], ...]
    names: Mapping[str, float]


OUTER = Outer(
    -5, None, ("x", "y"), Inner("i", 3), Colour.RED, datetime(2026, 1, 2, tzinfo=UTC), "b", ((1, b"z"),), {"b": 1, "a": 2.5}
)  # fmt: skip


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, -1),
        (str | None, None),
        (float, 2),
        (float | None, 2),
        (tuple[str, int], ("a", 1)),
        (tuple[str, float], ("a", 1)),
        (Outer, OUTER),
        (tuple[Outer, ...], (OUTER, OUTER)),
        (Outer | None, OUTER),
        (Any, ("a", {"n": 1})),
    ],
)
def test_what_was_accepted_is_encoded_again_to_the_same_bytes(hint: Any, value: Any) -> None:
    """Digests are made of them: replicas that differed here would be taken for damaged."""
    codec = compile_codec(hint)
    assert codec.encode_accepted(value) == codec.encode(value)
