"""The short names in SQL of what meets: each answers, and shows what is there."""

from __future__ import annotations

import pytest

import tauraft

pytestmark = pytest.mark.middle


def test_all_that_meets_is_seen_in_sql() -> None:
    with tauraft.Cluster("/raft/views", storage="memory") as cluster:
        term = cluster.election("x").campaign(b"v")
        cluster.gate("g").open()
        cluster.latch("l", 3).count_down()
        cluster.double_barrier("d", 1).enter()
        cluster.cyclic_barrier("c", 1).wait()
        cluster.rate_limit("r", 1, 5).try_acquire()
        cluster.group("team").join(b"m", id="a")
        cluster.once("o").run(lambda turn: b"done")
        with cluster.partitioner("p", 2) as mine:
            held = mine.next(5)
            shown = {
                view: cluster.sql(f"SELECT * FROM {view}").rows
                for view in (
                    "elections", "gates", "latches", "double_barriers", "cyclic_barriers", "rate_limits",
                    "group_members", "once", "partitions",
                )
            }  # fmt: skip
        assert shown["elections"] == (("x", term.token, cluster.session.id, b"v"),)
        assert [row[0] for row in shown["gates"]] == ["g"]
        assert shown["latches"] == (("l", 3, 2),)
        assert shown["double_barriers"] == (("d", 1, 0, 1, 0, 1, False),)
        assert shown["cyclic_barriers"] == (("c", 1, 0, 1, False),)
        assert [row[:3] for row in shown["rate_limits"]] == [("r", 1.0, 5)]
        assert [(row[0], row[1], row[3]) for row in shown["group_members"]] == [("team", "a", b"m")]
        assert [(row[0], row[1], row[3]) for row in shown["once"]] == [("o", "done", b"done")]
        assert [(row[0], row[1], row[4]) for row in shown["partitions"]] == [("p", 0, held.token), ("p", 1, 0)]
