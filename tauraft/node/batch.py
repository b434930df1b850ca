"""The bytes of a BATCH entry (docs/decisions/0001), and back.

Everything that waits when the leader turns to its queue becomes one entry: one record on every
disk, one message to every follower.  Followers persist and apply exactly these bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from tauraft.node.replica import Item

FORMAT = 1


class BatchError(Exception):
    """A committed entry that does not decode: this replica must stop before it (SAFETY 13, 29)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One entry's content. ``items`` as (session, sequence, acked_below, wait_ns, payload)."""

    now_ns: int
    wall_ns: int
    proposer: str
    items: Sequence[Sequence[Any]]


def pack_item(item: Item) -> list[Any]:
    return [item.session, item.sequence, item.acked_below, item.wait_ns, item.payload]


def encode_batch(now_ns: int, wall_ns: int, proposer: str, items: Sequence[Item]) -> bytes:
    packed: bytes = msgpack.packb([FORMAT, now_ns, wall_ns, proposer, [pack_item(item) for item in items]])
    return packed


def decode_batch(data: bytes) -> Batch:
    """Raises ``BatchError``."""
    try:
        form, now_ns, wall_ns, proposer, items = msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BatchError(f"undecodable entry: {error}") from error
    if form != FORMAT:
        raise BatchError(f"an entry of format {form!r}; this version reads format {FORMAT}: update tauraft")
    return Batch(now_ns, wall_ns, proposer, items)


def unpack_items(value: Any) -> list[Item]:
    """What a peer forwarded. Raises ``BatchError``."""
    if type(value) is not list:
        raise BatchError("not a list of items")
    return [unpack_item(item) for item in value]


def unpack_item(value: Any) -> Item:
    """An item forwarded by a peer. Raises ``BatchError``."""
    try:
        session, sequence, acked_below, wait_ns, payload = value
    except (ValueError, TypeError) as error:
        raise BatchError("not an item") from error
    numbers = (session, sequence, acked_below, wait_ns)
    if any(type(number) is not int or number < 0 for number in numbers) or type(payload) is not bytes:
        raise BatchError("not an item")
    return Item(session, sequence, acked_below, wait_ns, payload)
