"""What `queue watch` and `group watch` say and where they go on, over the real apply engine in one process; and what no `watch` takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tauraft._blocking.primitives import Primitives
from tauraft.cli.group import MemberLines
from tauraft.cli.main import main
from tauraft.cli.queue import ItemLines
from tauraft.cli.watching import Line, told
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_primitives.groups.messages import MEMBERS, Join, LeaveGroup, members_of
from tauraft_primitives.queues.messages import ITEMS, Enqueue, Pop, items_of
from tests.client.test_election_facade import end_session
from tests.client.test_facade import blocking, wait_until
from tests.client.test_holds import InThread
from tests.client.test_queue_facade import waiters
from tests.session.machine_replica import MachineHost


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([*HOLDERS, Fencing])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


def watched(
    cluster: Primitives, lines_of: ItemLines | MemberLines, since: int | None, until: int = 0
) -> list[list[Line]]:
    """The lines of each revision that the queue or group "x" tells of after ``since``, to ``until``."""
    table, (low, high) = (ITEMS, items_of("x")) if isinstance(lines_of, ItemLines) else (MEMBERS, members_of("x"))
    found: list[list[Line]] = []
    with cluster.watch(table, low=low, high=high, since_revision=since, with_state=since is None) as watch:  # type: ignore[arg-type]
        for lines in told(watch, lines_of, begins_with_state=since is None):  # type: ignore[arg-type]
            found.append(lines)
            if lines[0][0]["revision"] >= until:
                break
    return found


def flat(found: list[list[Line]]) -> list[dict[str, Any]]:
    return [line for lines in found for line, _ in lines]


def goes_on_from_each_revision(cluster: Primitives, lines_of: ItemLines | MemberLines, found: list[list[Line]]) -> bool:
    """Begun again after any revision that was printed: the rest, whole, and nothing twice."""
    revisions = [lines[0][0]["revision"] for lines in found]
    assert all(
        line["revision"] == revision for lines, revision in zip(found, revisions, strict=True) for line, _ in lines
    )
    return revisions == sorted(set(revisions)) and all(
        watched(cluster, lines_of, revision, revisions[-1]) == found[place + 1 :]
        for place, revision in enumerate(revisions[:-1])
    )


# ---- queues ----


def test_what_becomes_of_an_item_is_told_and_gone_on_with_after_any_revision(cluster: Primitives) -> None:
    queue = cluster.queue("x", max_attempts=2)
    first = queue.put(b"one", id="1", priority=3, group="g").revision
    queue.claim(visibility=60).nack(reason="busy")
    job = queue.claim(visibility=60)
    job.extend(90)  # no news
    job.bury("no such address")
    cluster.queue("x\0").put(b"of another queue", id="3")
    queue.redrive()
    queue.pop()
    queue.put(b"two", id="2", delay=0.01)
    wait_until("it is due", lambda: queue.stats().ready == 1)
    queue.purge()
    queue.put(b"one", id="1", ttl=0.01)
    wait_until("it is gone", lambda: queue.stats().ready == 0)
    last = queue.put(b"", id="3").revision

    found = watched(cluster, ItemLines("x"), first - 1, last)
    lines = flat(found)
    assert [(line["event"], line["item"]["id"], line["item"]["state"]) for line in lines] == [
        ("put", "1", "ready"),
        ("claimed", "1", "claimed"),
        ("returned", "1", "ready"),
        ("claimed", "1", "claimed"),
        ("dead", "1", "dead"),
        ("redriven", "1", "ready"),
        ("acked", "1", "acked"),
        ("put", "2", "delayed"),
        ("due", "2", "ready"),
        ("purged", "2", "purged"),
        ("put", "1", "ready"),
        ("expired", "1", "expired"),
        ("put", "3", "ready"),
    ]
    assert lines[4] == {
        "event": "dead",
        "name": "x",
        "revision": lines[4]["revision"],
        "item": {
            "id": "1", "state": "dead", "group": "g", "priority": 3, "attempts": 2, "token": None,
            "reason": "no such address", "history": ["nack: busy"],
        },
    }  # fmt: skip
    words = [text.removeprefix(f"{line['revision']} x: ") for one in found for line, text in one]
    assert words[:6] == [
        "1 put, ready",
        f"1 claimed, token {lines[1]['item']['token']}, attempt 1",
        "1 returned (nack: busy), ready",
        f"1 claimed, token {job.token}, attempt 2",
        "1 dead: no such address after 2 attempts",
        "1 redriven",
    ]
    assert goes_on_from_each_revision(cluster, ItemLines("x"), found)


def test_what_one_command_does_to_an_item_is_told_at_once(host: MachineHost, cluster: Primitives) -> None:
    queue = cluster.queue("x")
    with blocking(host) as other:
        first, _ = cluster.transaction(Enqueue("x", b"", id="1"), Pop("x"))
        waits = InThread(lambda: queue.claim(timeout=10))
        wait_until("it waits", lambda: waiters(host) == 1)
        other.queue("x").put(b"", id="2")
        lost = waits.value()
        waits = InThread(lambda: other.queue("x").claim(timeout=10))
        wait_until("it waits", lambda: waiters(host) == 1)
        lost.nack(reason="busy")
        job = waits.value()
        last = other.queue("x").put(b"", id="3").revision
        found = watched(cluster, ItemLines("x"), first.revision - 1, last)
    assert [[(line["event"], line["item"]["token"]) for line, _ in lines] for lines in found] == [
        [("put", None), ("acked", None)],
        [("put", lost.token), ("claimed", lost.token)],
        [("returned", job.token), ("claimed", job.token)],
        [("put", None)],
    ]
    assert [text.partition(" x: ")[2] for _, text in found[2]] == [
        "2 returned (nack: busy)",
        f"2 claimed, token {job.token}, attempt 2",
    ]


def test_a_queues_watch_begins_with_what_is_there_and_says_so_again_where_changes_are_gone(
    host: MachineHost, cluster: Primitives
) -> None:
    assert host.replica is not None
    queue = cluster.queue("x")
    first = queue.put(b"", id="0").revision
    ((state,),) = watched(cluster, ItemLines("x"), None)
    assert (state[0]["event"], state[0]["name"]) == ("state", "x")
    assert [item["id"] for item in state[0]["items"]] == ["0"]
    assert state[1] == f"{state[0]['revision']} x: 1 ready, 0 delayed, 0 claimed, 0 dead"
    host.replica.change_log._max_bytes = 2_000
    for number in range(1, 30):
        last = queue.put(b"x" * 100, id=str(number)).revision
        queue.pop()
    ((resync,),) = watched(cluster, ItemLines("x"), first)
    assert resync[0]["event"] == "resync" and resync[0]["revision"] >= last
    assert [(item["id"], item["state"]) for item in resync[0]["items"]] == [("29", "ready")], "not what has ended"
    assert resync[1].endswith(" x (resync: what changed before is gone): 1 ready, 0 delayed, 0 claimed, 0 dead")


# ---- groups ----


def test_who_joins_changes_and_leaves_is_told_and_gone_on_with_after_any_revision(
    host: MachineHost, cluster: Primitives
) -> None:
    group = cluster.group("x")
    a = group.join(b"one", id="a")
    cluster.group("x\0").join(id="a")
    a.update("two")
    _, joined = cluster.transaction(LeaveGroup("x", "a", a.token), Join("x", "a"))
    doomed = blocking(host).start()
    doomed.group("x").join(id="b")
    doomed.group("x").join(id="c")
    end_session(host, doomed)
    last = group.join(id="d").token
    found = watched(cluster, MemberLines("x"), a.token - 1, last)
    assert [[(line["event"], line["member"]["id"]) for line, _ in lines] for lines in found] == [
        [("joined", "a")],
        [("updated", "a")],
        [("left", "a"), ("joined", "a")],
        [("joined", "b")],
        [("joined", "c")],
        [("left", "b"), ("left", "c")],
        [("joined", "d")],
    ]
    lines = flat(found)
    assert [lines[place]["member"]["metadata"] for place in range(4)] == ["one", "two", "two", ""]
    assert lines[3]["member"]["token"] == joined.token
    assert set(lines[0]) == {"event", "name", "revision", "member"}
    assert set(lines[0]["member"]) == {"id", "owner", "metadata", "metadata_base64", "since", "token"}
    words = found[0][0][1]
    assert words.startswith(f"{lines[0]['revision']} x: a joined: test@") and words.endswith(
        f" ('one'), token {a.token}"
    )
    assert goes_on_from_each_revision(cluster, MemberLines("x"), found)
    doomed.close()


def test_a_groups_watch_begins_with_who_is_there_and_says_so_again_where_changes_are_gone(
    host: MachineHost, cluster: Primitives
) -> None:
    assert host.replica is not None
    a = cluster.group("x").join(id="a")
    ((state,),) = watched(cluster, MemberLines("x"), None)
    assert set(state[0]) == {"event", "name", "revision", "members"} and state[0]["event"] == "state"
    assert [member["id"] for member in state[0]["members"]] == ["a"] and state[1].endswith(" x: a")
    host.replica.change_log._max_bytes = 2_000
    for number in range(30):
        a.update(f"{number}" * 50)
    ((resync,),) = watched(cluster, MemberLines("x"), a.token)
    assert resync[0]["event"] == "resync" and resync[0]["members"][0]["metadata"] == "29" * 50
    assert resync[1].endswith(" x (resync: what changed before is gone): a")


# ---- what no watch takes ----

WATCHES = [
    ("kv",),
    ("lock", "x"),
    ("election", "x"),
    ("barrier", "x"),
    ("cron",),
    ("queue", "x"),
    ("group", "x"),
]


def exited(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("watch", WATCHES, ids=lambda watch: str(watch[0]))
def test_a_negative_since_and_no_namespace_are_wrong_usage(
    watch: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAURAFT_NAMESPACE", raising=False)
    group, *rest = watch
    assert exited("-n", "/raft/x", group, "watch", *rest, "--since", "-1") == 2
    assert "'--since': -1 is not in the range x>=0" in capsys.readouterr().err
    assert exited("--json", group, "watch", *rest) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["outcome"]) == ("usage", "not-applied") and "name the cluster" in error["message"]


@pytest.mark.parametrize("group", ["queue", "group"])
def test_a_bad_name_is_wrong_usage_and_no_cluster_is_unavailable(
    group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exited("-n", "/raft/x", group, "watch", "") == 2
    assert "empty" in capsys.readouterr().err
    there = ("-n", "/raft/x", "--data-dir", str(tmp_path), "--timeout", "0.1", "--json")
    assert exited(*there, group, "watch", "x") == 3
    said = capsys.readouterr()
    assert said.out == "" and set(json.loads(said.err)["error"]) == {"code", "message", "outcome"}
