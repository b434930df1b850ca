"""What a replica says of itself and its cluster: status, members, and what is wrong with it in words.

Pure functions of a replica's state; nothing is asked of anybody.  ``trouble`` is the one clause that goes into errors while
nothing can be served; ``warnings`` are what an operator should know although it serves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from tauraft.core.messages import Member, Role

if TYPE_CHECKING:
    from tauraft.node.local_replica import LocalReplica

SPEAK_AFTER_NS: Final = 3_000_000_000
MAX_LAG: Final = 1_000  # entries


def status(replica: LocalReplica) -> dict[str, Any]:
    """As ``tauraft.types.Status``, in plain values."""
    raft = replica.driver.raft
    found = raft.status()
    rows = replica.machine.system.replicas
    voters = [rows.get(m.peer_id) for m in sorted(found.membership.voters)]
    return {
        "namespace": replica.namespace,
        "cluster_id": replica.cluster_id.hex(),
        "peer_id": replica.peer_id,
        "state": "learner" if replica.me in found.membership.learners else Role(raft.role).name.lower(),
        "term": raft.term,
        "leader": None if raft.leader is None else raft.leader.peer_id,
        "members": members(replica),
        "commit_index": raft.commit,
        "applied_index": replica.machine.applied_index,
        "revision": replica.machine.revision,
        "holder_pid": os.getpid(),
        "hosts": len({row.machine_id for row in voters if row is not None}),
        "disks": len({(row.machine_id, row.disk) for row in voters if row is not None}),
        "warnings": warnings(replica),
    }


def members(replica: LocalReplica) -> list[dict[str, Any]]:
    """As ``tauraft.types.Member``, and the incarnation, in the order of their peer ids."""
    membership = replica.driver.raft.membership
    leader = replica.driver.leader
    found = []
    for member in sorted(membership.all_members()):
        row = replica.machine.system.replicas.get(member.peer_id)
        found.append(
            {
                "peer_id": member.peer_id,
                "incarnation": member.incarnation,
                "addresses": list(replica.addresses_of(member.peer_id)),
                "role": "voter" if member in membership.voters | membership.outgoing else "learner",
                "host": "" if row is None else row.host,
                "is_leader": member == leader,
            }
        )
    return found


def trouble(replica: LocalReplica) -> str:
    """Why nothing is served: empty for the first 3 s, in which an election ends, and while there is a leader."""
    since = replica.leaderless_since_ns
    if replica.driver.leader is not None or replica.driver.clock_ns() - since < SPEAK_AFTER_NS:
        return ""
    if replica.driver.suspension is not None:
        return replica.driver.suspension.reason
    membership = replica.driver.raft.membership
    if replica.me not in membership.all_members():
        return "waiting: this node is no member any more, and nobody has let it in again"
    voters = sorted(membership.voters)
    away = [member for member in voters if member != replica.me and not replica.driver.is_connected(member.peer_id)]
    if not away:
        return "waiting: all members are running, and none of them leads yet"
    names = ", ".join(_name(replica, member) for member in away)
    return f"waiting: {len(voters) - len(away)} of {len(voters)} members running ({names} not reachable)"


def warnings(replica: LocalReplica) -> list[str]:
    """What an operator should know, most pressing first."""
    said = [trouble(replica)] if trouble(replica) else []
    driver = replica.driver
    if driver.suspension is not None and driver.suspension.reason not in said:
        said.append(driver.suspension.reason)
    if driver.is_tail_suspect:
        said.append(
            "the last record of this replica's log is damaged and may have been acknowledged: it does not vote until a "
            "leader has sent it what was there; if none can be elected so, see `tauraft recover`"
        )
    said += [text for _, text in sorted(driver.warnings.items())]
    membership = replica.driver.raft.membership
    rows = replica.machine.system.replicas
    voters = sorted(membership.voters)
    if replica.me not in membership.all_members():
        said.append("this node is no member of the cluster any more: start it again to ask for its place, or close it")
    disks = [(row.machine_id, row.disk) for member in voters if (row := rows.get(member.peer_id)) is not None]
    most = max((disks.count(disk) for disk in disks), default=0)
    if most > len(voters) // 2:
        # A majority is lost with that disk, and what is acknowledged with it (SAFETY 8).
        how_many = "the one voter" if len(voters) == 1 else f"{most} of {len(voters)} voters"
        said.append(f"survives processes, not this disk: {how_many} on one disk")
    if len(voters) == 2:
        said.append("two voters: the loss of either stops the cluster; a third one would survive it")
    progress = replica.driver.raft.status().progress
    commit = replica.driver.raft.commit
    for member in sorted(membership.all_members() - {replica.me}):
        if not replica.driver.is_connected(member.peer_id):
            said.append(f"{_name(replica, member)} is not reachable")
        elif member in progress and commit - progress[member].match > MAX_LAG:
            said.append(f"{_name(replica, member)} is {commit - progress[member].match} entries behind")
    if commit - replica.machine.applied_index > MAX_LAG:
        said.append(f"this replica has {commit - replica.machine.applied_index} committed entries still to apply")
    said += [text for _, text in sorted(replica.problems.items())]
    return said


def _name(replica: LocalReplica, member: Member) -> str:
    """A host's name where members are told apart by it, else the peer id's end."""
    rows = replica.machine.system.replicas
    row = rows.get(member.peer_id)
    if row is None or not row.host:
        return f"peer ...{member.peer_id[-6:]}"
    is_only_one = sum(other.host == row.host for _, other in rows.items()) == 1
    return row.host if is_only_one else f"{row.host} (peer ...{member.peer_id[-6:]})"
