from __future__ import annotations

from dataclasses import replace

import pytest

from tauraft.formation.decide import (
    Ask,
    ContactKnownMembers,
    DeferTo,
    DiscovererView,
    JoinCluster,
    Options,
    PeerView,
    Propose,
    Refuse,
    Situation,
    StartAlone,
    Step,
    Wait,
    WriteGenesis,
    decide,
)
from tauraft.formation.genesis import Genesis, Voter
from tauraft.formation.messages import PeerReport, State

GENESIS = Genesis(b"0" * 16, "/raft/a", (Voter("m", 1),), "m")
LOCAL = (DiscovererView("local", 0.0),)
MDNS = (DiscovererView("local", 0.0), DiscovererView("mdns", 2.0))


def peer(
    name: str, age_s: float = 1.0, defers_to: str | None = "m", rounds: int = 2, silent_s: float = 0.0
) -> PeerView:
    return PeerView(name, PeerReport(name, 1, (), age_s, State.UNDECIDED, defers_to=defers_to), silent_s, rounds)


def member(name: str, cluster: bytes = b"c" * 16) -> PeerView:
    return PeerView(name, PeerReport(name, 1, (), 99.0, State.MEMBER, cluster))


def at(*peers: PeerView, age_s: float = 1.0, found_by: tuple[DiscovererView, ...] = LOCAL, **rest: object) -> Situation:
    options = Options(**{k: rest.pop(k) for k in ("expect", "force_bootstrap") if k in rest})  # type: ignore[arg-type]
    return Situation("m", 1, age_s, options, peers=peers, discoverers=found_by, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        pytest.param(at(member("a"), genesis_on_disk=GENESIS), ContactKnownMembers, id="own disk wins over all"),
        pytest.param(at(member("a"), force_bootstrap=True), StartAlone, id="forced"),
        pytest.param(at(), StartAlone, id="alone with host-local discovery"),
        pytest.param(at(found_by=MDNS), Wait, id="a discoverer's minimum"),
        pytest.param(at(found_by=MDNS, age_s=2.0), StartAlone, id="minimum over"),
        pytest.param(at(found_by=(), age_s=9.9), Wait, id="no discoverer: the whole window"),
        pytest.param(at(peer("a"), member("z")), JoinCluster, id="a cluster wins over bootstrapping"),
        pytest.param(at(PeerView("z")), Ask, id="a known peer is asked first"),
        pytest.param(at(PeerView("z"), age_s=10.0), StartAlone, id="one that never answered is let go"),
        pytest.param(at(PeerView("z", is_awaited=True), age_s=10.0), Ask, id="one that is seen to run is waited for"),
        pytest.param(at(peer("z", defers_to=None)), Wait, id="no word, no genesis"),
        pytest.param(at(peer("z", defers_to=None), age_s=50.0), Wait, id="no word, no genesis, however late"),
        pytest.param(at(peer("z", rounds=1)), Wait, id="founders disagree on who is there"),
        pytest.param(at(peer("z"), peer("y")), WriteGenesis, id="all gave their word"),
        pytest.param(at(peer("a", defers_to=None)), DeferTo, id="somebody is lower"),
        pytest.param(at(peer("a", defers_to=None, silent_s=4.0)), StartAlone, id="the lower one is silent"),
        pytest.param(
            at(replace(peer("a", silent_s=4.0), is_awaited=True), age_s=10.0), Ask, id="silent, and seen to run"
        ),
        pytest.param(at(peer("a", age_s=1.0), age_s=9.5), WriteGenesis, id="the lower one is late"),
        pytest.param(at(peer("z", age_s=12.0, defers_to=None)), DeferTo, id="we are late"),
        pytest.param(at(peer("y", defers_to="z"), peer("z", defers_to=None)), DeferTo, id="another has more words"),
        pytest.param(
            at(peer("a", defers_to=None), age_s=9.5), Wait, id="two that would found: the late one may yet yield"
        ),
        pytest.param(
            at(peer("a", defers_to=None), age_s=10.0), DeferTo, id="two that would found, for ever: the lower"
        ),
        pytest.param(at(peer("z"), defers_to="z"), WriteGenesis, id="mutual: the lower takes its word back"),
        pytest.param(at(peer("a"), defers_to="a", age_s=9.5), DeferTo, id="mutual: the higher never does"),
        pytest.param(at(peer("z"), expect=3), Wait, id="expect: one missing"),
        pytest.param(at(peer("y"), peer("z"), expect=3), Propose, id="expect: all there"),
        pytest.param(at(peer("a"), peer("z"), expect=3), DeferTo, id="expect: a lower one proposes"),
        pytest.param(at(peer("x"), peer("y"), peer("z"), expect=3), Refuse, id="expect: one too many"),
        pytest.param(at(peer("y", silent_s=9), peer("z", silent_s=9), expect=3), Wait, id="expect: no majority"),
    ],
)
def test_what_a_node_does_next(situation: Situation, expected: type[Step]) -> None:
    assert type(decide(situation)) is expected
