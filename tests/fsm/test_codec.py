"""Values by type: what is packed, and what is refused."""

from __future__ import annotations

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
