"""What ``kv.watch`` yields: one event a key, in the order of their revisions; those of one revision stay together.

``revision`` is that of the command that did it, of a transaction that of the whole: pass the last one seen as
``since_revision`` to go on from there.  ``expires_in`` of entries counts from the moment of the event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tauraft.types import Entry, Revision


@dataclass(frozen=True, slots=True)
class Put:
    """``entry`` was written over ``previous``, if that was there."""

    key: str
    revision: Revision
    entry: Entry
    previous: Entry | None


@dataclass(frozen=True, slots=True)
class Delete:
    """Somebody deleted it, or revoked the lease it was attached to."""

    key: str
    revision: Revision
    previous: Entry


@dataclass(frozen=True, slots=True)
class Expire:
    """Its ttl ran out, or what it was attached to, a lease or session, ended by itself."""

    key: str
    revision: Revision
    previous: Entry


@dataclass(frozen=True, slots=True)
class Resync:
    """Some events are gone: forget all you had, this is what is there now; what comes after it follows."""

    revision: Revision
    entries: tuple[Entry, ...]


Event: TypeAlias = Put | Delete | Expire | Resync
