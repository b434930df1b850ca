"""A service that runs once in a cluster: start it as often as you like, one serves, and when that one is gone the next does.

    python singleton.py          # in three terminals; then kill the one that serves

Whoever serves has a term, whose token fences: what it writes under it is refused once another was elected, however late it
comes. ``term.lost`` is set when this process must count itself out, before another can be elected.
"""

from __future__ import annotations

import os

import tauraft
from tauraft.commands import CheckHold, Put

BEAT_S = float(os.environ.get("BEAT_S", "1"))


def serve(cluster: tauraft.Cluster, term: tauraft.Term) -> None:
    """The service, until its term is lost. It says so, and keeps where it is for the one that comes next."""
    print(f"process {os.getpid()} serves, with token {term.token}", flush=True)
    while not term.lost.is_set():
        entry = cluster.kv.get("progress")
        step = 1 if entry is None else int(entry.value) + 1
        # All or nothing, and nothing once the term is over: however this process ends, no step is half done.
        cluster.transaction(
            CheckHold(term.token),
            Put("progress", b"%d" % step),
            Put(f"steps/{step:09}", b"%d %d" % (term.token, os.getpid())),
        )
        term.lost.wait(BEAT_S)


def main() -> None:
    with tauraft.Cluster("/raft/singleton") as cluster:
        election = cluster.election("service")
        while True:
            try:
                election.run(lambda term: serve(cluster, term), value=str(os.getpid()))
            except (tauraft.LeadershipLost, tauraft.NotHolder, tauraft.Unavailable) as over:
                print(f"process {os.getpid()} stands again: {over}", flush=True)


if __name__ == "__main__":
    main()
