# Generated from tauraft_primitives.groups.handle by `python -m tauraft.twin`; change that file, not this one.
"""Groups as a caller holds them: ``Group`` by name, ``Membership`` of whoever joined.

A membership is a hold (``tauraft_primitives.holds``): it lives with the session, and one whose caller is cancelled or
interrupted before it is handed out is given back by the engine.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Iterator

from tauraft import errors
from tauraft.handle import (
    Holder,
    Open,
    Opening,
    Watch,
    Frame,
    State,
    as_bytes,
    check_name,
)
from tauraft.types import Bytes, GroupInfo, GroupMember, Owner
from tauraft_primitives.groups.messages import (
    MEMBERS,
    GiveBackMember,
    IsMember,
    Join,
    Joined,
    LeaveGroup,
    ListMembers,
    MemberRow,
    UpdateMember,
    check_metadata,
    members_of,
)
from tauraft_primitives.holds._blocking import Hold, next_attempt, wait_for


class Membership(Hold):
    """A member, until it leaves or its session ends. Its ``with`` leaves."""

    id: str
    metadata: bytes

    def update(self, metadata: Bytes) -> None:
        """Say something else of itself. Raises ``NotHolder`` when it is no member any more."""
        data = check_metadata(as_bytes(metadata, "metadata"))
        if self._is_released or self._tenure.is_lost:
            raise errors.NotHolder(f"{self.id!r} is no member of {self.name!r} any more; nothing changed")
        self._holder.submit(UpdateMember(self.name, self.id, self.token, data))
        self.metadata = data

    def leave(self) -> None:
        """Raises ``NotHolder`` when it is no member any more."""
        self.release()


class Group:
    """A group by name, made by who joins it. Made without I/O; may be shared by tasks and threads."""

    def __init__(self, holder: Holder, name: str) -> None:
        self.name = check_name(name)
        self._holder = holder

    def join(self, metadata: Bytes = b"", *, id: str | None = None) -> Opening[Membership]:
        """Be there, for others to see: ``with group.join(b"...")`` until the block ends, or awaited, until ``leave``.

        ``id`` None: one is made. Raises ``MemberExists`` where another member has it: a process that died is one until its
        session has ended. A session may join more than once.
        """
        data = check_metadata(as_bytes(metadata, "metadata"))
        if id is not None:
            check_name(id, "id")
        return Open.of(self._join(data, id))

    def members(self) -> tuple[GroupMember, ...]:
        """Who is there, in the order of their ids."""
        found: list[GroupMember] = []
        after: str | None = ""
        while after is not None:
            page = self._holder.query(ListMembers(self.name, after))
            found += page.members
            after = page.after
        return tuple(found)

    def info(self) -> GroupInfo:
        return GroupInfo(self.name, self.members())

    def watch(self) -> Watch[tuple[GroupMember, ...]]:
        """Who is there now, then who is there after each change: all of them, in the order of their ids. Goes on over
        reconnects; what changed in one revision is seen at once."""
        low, high = members_of(self.name)
        return self._holder.watch(MEMBERS, low=low, high=high, with_state=True).map(_Present().told)

    def _join(self, data: bytes, id_: str | None) -> Membership:
        holder, attempt = self._holder, next_attempt()
        started = holder.now()

        def build(joined: Joined) -> Membership:
            member = Membership(
                holder,
                "membership of",
                self.name,
                joined.token,
                holder.tenure(ttl=None, started=started, renewal=None),
                release=LeaveGroup(self.name, joined.id, joined.token),
                holds=IsMember(self.name, joined.id, joined.token),
            )
            member.id, member.metadata = joined.id, data
            return member

        command = Join(self.name, id_, data, Owner(0, *holder.whoami()), attempt)
        return wait_for(holder, command, None, GiveBackMember(self.name, attempt), build)


class _Present:
    """Who is there, followed from frame to frame."""

    def __init__(self) -> None:
        self._rows: dict[str, MemberRow] = {}

    def told(
        self, told: Frame[tuple[str, str], MemberRow] | State[tuple[str, str], MemberRow]
    ) -> Iterator[tuple[GroupMember, ...]]:
        if isinstance(told, State):
            self._rows = {key[1]: row for key, row in told.rows}
        else:
            for change in told.changes:
                if change.new is None:
                    self._rows.pop(change.key[1], None)
                else:
                    self._rows[change.key[1]] = change.new
        yield tuple(row.member(id_) for id_, row in sorted(self._rows.items()))
