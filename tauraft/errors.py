"""Every error a user meets: one tree, stable codes, one sentence each.

``args[0]`` says what happened, whether the command may have taken effect, and what to do.  ``code`` is the
class's name in kebab-case and never changes.  ``outcome`` is "not-applied" where it is certain that nothing
happened, "unknown" where it may have.

Errors cross the wire as ``[code, message, outcome, {attribute: value}]``.  A class that is imported where the error arrives is
raised as itself, a plugin's own subclass of ``Refused`` too; elsewhere it is the nearest one known, with its code.
Imports nothing of tauraft: messages, plugins and the engine all stand on this file.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, TypeAlias

import msgpack

Outcome: TypeAlias = Literal["not-applied", "unknown"]

_BY_CODE: dict[str, type[TauraftError]] = {}
_IS_REFUSED = "is_refused"


class TauraftError(Exception):
    """Base of all. ``retry_after``: seconds after which trying again makes sense, where that is known."""

    code: str = "tauraft-error"
    outcome: Outcome = "not-applied"
    retry_after: float | None = None
    wire_attributes: ClassVar[tuple[str, ...]] = ()  # what crosses the wire besides the message

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()
        _BY_CODE.setdefault(cls.code, cls)

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        for name, value in attributes.items():
            setattr(self, name, value)


class InvalidArgument(TauraftError, ValueError):
    """A wrong value, found before anything was sent. ``option`` names the argument."""

    option: str = ""
    wire_attributes: ClassVar[tuple[str, ...]] = ("option",)


class InvalidNamespace(InvalidArgument):
    """Namespaces look like ``/raft/name``."""


class InvalidOption(InvalidArgument):
    """An unknown or impossible option of a constructor, the environment or ``tauraft.toml``."""


class InvalidTimeout(InvalidArgument):
    """Operations: 0 < t <= 60; waits: >= 0, or None for ever."""


class InvalidBarrier(InvalidArgument):
    """``cluster.barrier``: 0 < t <= 30."""


class InvalidSpec(InvalidArgument):
    """A cron spec. ``field`` names its part: "minute", "timezone", ..."""

    field: str = ""
    wire_attributes: ClassVar[tuple[str, ...]] = ("option", "field")


class TooLarge(InvalidArgument):
    """A name or value above its limit; refused before it reaches the log."""


class Refused(TauraftError):
    """An answer: it certainly did not happen, nothing changed. Plugins raise ``Refused(code, message)``."""

    def __init__(self, code: str, message: str = "", **attributes: Any) -> None:
        super().__init__(message or code, **attributes)
        self.code = code


class _Coded(Refused):
    """A ``Refused`` whose class is its code."""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(type(self).code, message, **attributes)


class InvalidCommand(_Coded):
    """Unknown FSM or tag, undecodable; also a command that waits inside a transaction."""


class CompareFailed(_Coded):
    """``put(if_revision=, if_absent=)``: ``entry`` is what is there."""

    entry: Any = None
    wire_attributes: ClassVar[tuple[str, ...]] = ("entry",)


class Compacted(_Coded):
    """That history is gone; ``oldest`` is the first revision that is left."""

    oldest: int = 0
    wire_attributes: ClassVar[tuple[str, ...]] = ("oldest",)


class NotHolder(_Coded):
    """Release, fenced write, proclaim: not, or not any more, the holder."""


class StaleToken(NotHolder):
    """A fencing token below the ``greatest`` one seen."""

    greatest: int = 0
    wire_attributes: ClassVar[tuple[str, ...]] = ("greatest",)


class StaleClaim(NotHolder):
    """The claim ran out, and the item is somebody else's."""


class QueueEmpty(_Coded):
    """Nothing to claim, pop or peek."""


class Mismatch(_Coded):
    """Permits, parties or count differ from those the name was made with."""


class UpgradeRefused(_Coded):
    """A reader asked for the write lock while it holds the read lock: it would wait for itself."""


class Deadlock(_Coded):
    """``cycle``: the names of the locks that wait for each other."""

    cycle: tuple[str, ...] = ()
    wire_attributes: ClassVar[tuple[str, ...]] = ("cycle",)


class NoCandidate(_Coded):
    """A transfer named a session that does not stand for election; who led still leads."""


class MemberExists(_Coded):
    """Another member of the group has that id."""


class BrokenBarrier(_Coded):
    """``who`` was lost, or gave up; None: abort() or reset()."""

    who: Any = None
    wire_attributes: ClassVar[tuple[str, ...]] = ("who",)


class CommandFailed(TauraftError):
    """A bug in a plugin's handler: undone on every replica."""


class WaitTimeout(TauraftError, TimeoutError):
    """A wait ran out and its withdrawal is committed: nothing is held."""


class Unavailable(TauraftError):
    """No answer in time; ``outcome`` says whether the command may take effect."""

    outcome: Outcome = "unknown"


class NoLeader(Unavailable):
    """No leader is known."""

    outcome: Outcome = "not-applied"


class NotLeader(Unavailable):
    """``forward=False`` only. ``leader``: where to go, if known."""

    outcome: Outcome = "not-applied"
    leader: Any = None


class Overloaded(Unavailable):
    """A queue is full; nothing was taken. ``retry_after`` is set."""

    outcome: Outcome = "not-applied"
    retry_after: float | None = 0.1


class SessionLost(Unavailable):
    """The session expired or was closed: all it held is free, unanswered commands may have taken effect."""


class Suspended(Unavailable):
    """The disk is full: serves stale reads; accepts again by itself when space returns."""

    outcome: Outcome = "not-applied"


class LockLost(TauraftError):
    """Any hold: lock, permit, lease. ``token`` is the one that no longer counts."""

    token: int = 0
    wire_attributes: ClassVar[tuple[str, ...]] = ("token",)


class LeadershipLost(LockLost):
    """The term of an election ended."""


class Shutdown(TauraftError):
    """Closed, or not started yet."""


class AlreadyClosed(Shutdown):
    """Used after ``close()``."""


class ForkedProcess(Shutdown):
    """A child of fork has its parent's object: make a new one here."""


class SplitBrain(TauraftError):
    """Two clusters of one name hold data. ``clusters``: their ids."""

    clusters: tuple[str, ...] = ()
    wire_attributes: ClassVar[tuple[str, ...]] = ("clusters",)


class PluginMissing(TauraftError):
    """The cluster runs a plugin this process lacks. ``package``: what to install."""

    package: str = ""
    wire_attributes: ClassVar[tuple[str, ...]] = ("package",)


class WrongKey(TauraftError):
    """Both sides of a connection have an ``encryption_key``, and they differ."""


class DataDirectoryError(TauraftError):
    """Foreign machine or format, not ours, not writable, corrupt: nothing was touched. ``path`` names it."""

    path: str = ""
    wire_attributes: ClassVar[tuple[str, ...]] = ("path",)


def to_wire(error: TauraftError) -> tuple[str, str, str, dict[str, Any]]:
    """(code, message, outcome, attributes); attributes are codec values."""
    attributes = {name: getattr(error, name) for name in error.wire_attributes}
    kind = _BY_CODE.get(error.code, Refused)
    # A plugin's code that is also that of an error of ours which is no answer. Only of ours: all replicas write the same bytes.
    if isinstance(error, Refused) and not issubclass(kind, Refused) and kind.__module__ == __name__:
        attributes[_IS_REFUSED] = True
    return error.code, str(error), error.outcome, attributes


def from_wire(code: str, message: str, outcome: str, attributes: dict[str, Any]) -> TauraftError:
    """The error as its class, where that is known here; else ``Refused`` with its code."""
    kind = _BY_CODE.get(code)
    if kind is None or kind is Refused or _IS_REFUSED in attributes:
        error: TauraftError = Refused(code, message)
    elif issubclass(kind, Refused) and not issubclass(kind, _Coded):
        error = kind(code, message)
    else:
        error = kind(message)
    for name, value in attributes.items():
        if name in error.wire_attributes:
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
    error.outcome = "unknown" if outcome == "unknown" else "not-applied"
    return error


def encode(error: TauraftError) -> bytes:
    """As it is stored in a session, and sent. Attributes that are not plain values are left out.

    Raises nothing: what a plugin refuses with is data of its own, and must not stop the replica that writes it down.
    """
    code, message, outcome, attributes = to_wire(error)
    plain = {name: _plain(value) for name, value in attributes.items()}
    try:
        packed: bytes = msgpack.packb([code, message, outcome, plain])
    except (OverflowError, TypeError, ValueError):
        text = [str(part).encode(errors="replace").decode() for part in (code, message)]
        packed = msgpack.packb([*text, outcome, {}])
    return packed


def decode(data: bytes) -> TauraftError:
    """Raises ``ValueError`` for what ``encode`` did not make."""
    try:
        code, message, outcome, attributes = msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
        return from_wire(code, message, outcome, attributes)
    except (TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not an encoded error: {error}") from error


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    fields = getattr(type(value), "__dataclass_fields__", None)
    return None if fields is None else {name: _plain(getattr(value, name)) for name in fields}
