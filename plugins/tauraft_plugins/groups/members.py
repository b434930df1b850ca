"""The group state machine: who is there, with what they say of themselves.

A member is a row by group and id, with a token; it goes when it leaves, or with its session. All of a session's memberships
go in one revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from tauraft.errors import MemberExists, NotHolder
from tauraft.fsm import FSM, Context, Table, answers, applies, session_ended
from tauraft.types import GroupMember
from tauraft_primitives.groups.messages import (
    GROUPS,
    MAX_LISTED,
    MAX_LISTED_BYTES,
    GiveBackMember,
    IsMember,
    Join,
    Joined,
    LeaveGroup,
    ListMembers,
    MemberRow,
    MembersPage,
    UpdateMember,
)


class Groups(FSM, name=GROUPS, version=1):
    teardown: ClassVar[int] = 50
    sql_views: ClassVar[Mapping[str, str]] = {
        "group_members": "SELECT key_0 AS name, key_1 AS id, token, metadata FROM tauraft_groups_members"
    }
    members: Table[tuple[str, str], MemberRow]  # (group, id)
    by_session: Table[tuple[int, str, str], None]  # (session, group, id)
    tokens: Table[int, None]

    @applies(Join)
    def join(self, command: Join, context: Context) -> Joined:
        assert context.session is not None
        token = context.new_revision()
        id_ = command.id
        if id_ is None:
            id_ = f"{context.session}-{token}"
        group = command.group
        known = self.members.get((group, id_))
        if known is not None:
            raise MemberExists(f"the group {group!r} has a member {id_!r} already, of session {known.owner.session}")
        owner = replace(command.who, session=context.session)
        self.members[group, id_] = MemberRow(token, owner, command.metadata, context.wall_ns, command.attempt)
        self.by_session[context.session, group, id_] = None
        self.tokens[token] = None
        return Joined(id_, token)

    @applies(LeaveGroup)
    def leave(self, command: LeaveGroup, context: Context) -> None:
        self._member(command.group, command.id, command.token)
        self._drop(command.group, command.id)

    @applies(UpdateMember)
    def update(self, command: UpdateMember, context: Context) -> None:
        member = self._member(command.group, command.id, command.token)
        self.members[command.group, command.id] = replace(member, metadata=command.metadata)

    @applies(GiveBackMember)
    def give_back(self, command: GiveBackMember, context: Context) -> None:
        session, group = context.session, command.group
        if session is None:
            return
        for _, _, id_ in [key for key, _ in self.by_session.range((session, group, ""), (session, group + "\0", ""))]:
            if self.members[group, id_].attempt == command.attempt:
                self._drop(group, id_)

    @session_ended
    def drop_members(self, session: int, context: Context) -> None:
        for (_, group, id_), _ in list(self.by_session.range((session, "", ""), (session + 1, "", ""))):
            self._drop(group, id_)

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether the member of that token is there."""
        return token in self.tokens

    @answers(ListMembers)
    def list_members(self, query: ListMembers) -> MembersPage:
        found: list[GroupMember] = []
        size = 0
        low = query.group, query.after + "\0" if query.after else ""
        for (_, id_), row in self.members.range(low, (query.group + "\0", "")):
            size += len(row.metadata)
            if found and (size > MAX_LISTED_BYTES or len(found) >= min(query.limit, MAX_LISTED)):
                return MembersPage(tuple(found), found[-1].id)
            found.append(row.member(id_))
        return MembersPage(tuple(found), None)

    @answers(IsMember)
    def is_member(self, query: IsMember) -> bool:
        row = self.members.get((query.group, query.id))
        return row is not None and row.token == query.token

    # ---- small ones ----

    def _drop(self, group: str, id_: str) -> None:
        row = self.members.pop((group, id_))
        del self.by_session[row.owner.session, group, id_]
        del self.tokens[row.token]

    def _member(self, group: str, id_: str, token: int) -> MemberRow:
        row = self.members.get((group, id_))
        if row is None or row.token != token:
            raise NotHolder(f"token {token} is no member {id_!r} of {group!r} (any more); nothing changed")
        return row
