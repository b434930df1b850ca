"""What the group handles send. Names and ids: UTF-8, 1 to 512 bytes; metadata: up to 64 KiB.

``attempt`` is the handle's own number of one join, so that one whose caller was interrupted can be given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import TooLarge
from tauraft.fsm import Command, Query, TableName
from tauraft.types import GroupMember, Owner, instant
from tauraft_primitives.checks import check_name, check_value

GROUPS: Final = "tauraft.groups"
MAX_METADATA_BYTES: Final = 64 << 10
MAX_LISTED: Final = 1_000
MAX_LISTED_BYTES: Final = 1 << 20  # of metadata, in one answer
NOBODY: Final = Owner(0, "", "", 0)


def check_metadata(metadata: bytes) -> bytes:
    """Raises ``TypeError``, ``TooLarge``."""
    check_value(metadata, "metadata")
    if len(metadata) > MAX_METADATA_BYTES:
        raise TooLarge(
            f"metadata has {len(metadata)} bytes: the limit is {MAX_METADATA_BYTES}; nothing was sent",
            option="metadata",
        )
    return metadata


@dataclass(frozen=True, slots=True)
class Joined:
    id: str
    token: int


@dataclass(frozen=True, slots=True)
class Join(Command[Joined], fsm=GROUPS):
    """``id`` None: one is made. Refuses (``MemberExists``) where another member of the group has it."""

    group: str
    id: str | None = None
    metadata: bytes = b""
    who: Owner = NOBODY
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.group)
        if self.id is not None:
            check_name(self.id, "id")
        check_metadata(self.metadata)


@dataclass(frozen=True, slots=True)
class LeaveGroup(Command[None], fsm=GROUPS):
    """Refuses with ``NotHolder`` unless ``token`` is that member's."""

    group: str
    id: str
    token: int


@dataclass(frozen=True, slots=True)
class UpdateMember(Command[None], fsm=GROUPS):
    """Other metadata. Refuses with ``NotHolder``."""

    group: str
    id: str
    token: int
    metadata: bytes

    def __post_init__(self) -> None:
        check_metadata(self.metadata)


@dataclass(frozen=True, slots=True)
class GiveBackMember(Command[None], fsm=GROUPS):
    """Leaves where that attempt of the session joined, if it did."""

    group: str
    attempt: int


@dataclass(frozen=True, slots=True)
class MembersPage:
    """``after``: ask again from there; None: that was all."""

    members: tuple[GroupMember, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class ListMembers(Query[MembersPage], fsm=GROUPS):
    """Members after the id ``after``, in the order of their ids; fewer than ``limit`` where their metadata is large."""

    group: str
    after: str = ""
    limit: int = MAX_LISTED


@dataclass(frozen=True, slots=True)
class IsMember(Query[bool], fsm=GROUPS):
    group: str
    id: str
    token: int


# ---- the rows of the members there are, for those who watch them ----


@dataclass(frozen=True, slots=True)
class MemberRow:
    """``since_ns``: of the wall clock."""

    token: int
    owner: Owner
    metadata: bytes
    since_ns: int
    attempt: int

    def member(self, id_: str) -> GroupMember:
        """As a caller sees it."""
        return GroupMember(id_, self.owner, self.metadata, instant(self.since_ns), self.token)


MEMBERS: Final = TableName(GROUPS, "members", tuple[str, str], MemberRow)


def members_of(group: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The bounds, low and high, of a watch on ``MEMBERS`` that sees one group."""
    return (group, ""), (group + "\0", "")
