"""What every primitive keeps, asked of each handle that the facades give: names, values, types, waits, snapshots of state.

The handles are found, not listed: whatever ``Primitives`` makes is asked. What cannot be guessed of one stands in the tables below,
and a handle that is missing there fails its test.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import tauraft
from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.primitives import AsyncPrimitives
from tauraft.testing import MemoryCluster
from tauraft_primitives.once.messages import Begin, GiveUpTurn
from tauraft_primitives.partitions.messages import ReleasePartition, TakePartition

FACADES = (tauraft.Cluster, tauraft.Client, tauraft.AsyncCluster, tauraft.AsyncClient)
MIB = 1 << 20


def _handle_of(function: Any) -> str:
    hint = typing.get_type_hints(function, vars(inspect.getmodule(function))).get("return")
    return hint.__name__ if getattr(hint, "__module__", "").startswith("tauraft_primitives.") else ""


# Facade's method or property -> the class of its handle.
HANDLES = {
    name: kind
    for name, member in vars(Primitives).items()
    if not name.startswith("_")
    for function in [member.fget if isinstance(member, property) else member]
    if inspect.isfunction(function) and (kind := _handle_of(function))
}
METHODS = {name: getattr(Primitives, name) for name in HANDLES if not isinstance(getattr(Primitives, name), property)}
NAMED = [name for name, method in METHODS.items() if {"name", "names"} & set(inspect.signature(method).parameters)]
# What a handle is made with, where something is needed.
GIVEN: dict[str, Any] = {
    "name": "n",
    "names": ["n"],
    "permits": 2,
    "token": 1,
    "ttl": 30.0,
    "parties": 2,
    "count": 2,
    "group": "n",
    "partitions": 2,
    "rate": 1.0,
    "burst": 2,
}


def make(cluster: Any, handle: str, **given: Any) -> Any:
    method = METHODS[handle]
    needed = [
        parameter.name
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "self"
    ]
    return method(cluster, **({name: GIVEN[name] for name in needed} | given))


@pytest.fixture(scope="module")
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster() as cluster:
        yield cluster


def entries(cluster: MemoryCluster) -> int:
    return cluster.status().commit_index


# ---- four facades ----


@pytest.mark.parametrize("handle", HANDLES)
def test_every_handle_is_on_all_four_facades_with_the_same_parameters(handle: str) -> None:
    for facade in FACADES:
        assert handle in dir(facade)
    if handle in METHODS:
        blocking, awaited = METHODS[handle], getattr(AsyncPrimitives, handle)
        assert list(inspect.signature(blocking).parameters) == list(inspect.signature(awaited).parameters)
        assert all(
            getattr(facade, handle) is (awaited if facade.__name__.startswith("Async") else blocking)
            for facade in FACADES
        )


@pytest.mark.parametrize("handle", HANDLES)
def test_every_handle_is_exported_under_both_its_names(handle: str) -> None:
    awaited = typing.get_type_hints(
        getattr(AsyncPrimitives, handle) if handle in METHODS else getattr(AsyncPrimitives, handle).fget,
        vars(inspect.getmodule(AsyncPrimitives)),
    )["return"]
    assert awaited.__name__ == f"Async{HANDLES[handle]}"
    assert getattr(tauraft, awaited.__name__) is awaited
    twin = getattr(tauraft, HANDLES[handle])
    public = {name for name in dir(awaited) if not name.startswith("_")}
    assert public == {name for name in dir(twin) if not name.startswith("_")}


# ---- names, types and values, at the call ----

BAD_NAMES = [
    pytest.param("", errors.InvalidArgument, id="empty"),
    pytest.param("x" * 513, errors.TooLarge, id="513 bytes"),
    pytest.param("é" * 257, errors.TooLarge, id="514 bytes of UTF-8"),
    pytest.param("\ud800", errors.InvalidArgument, id="no UTF-8"),
    pytest.param(b"n", TypeError, id="bytes"),
    pytest.param(None, TypeError, id="None"),
    pytest.param(5, TypeError, id="a number"),
]


def named(handle: str, name: Any) -> dict[str, Any]:
    return {"names": [name]} if "names" in inspect.signature(METHODS[handle]).parameters else {"name": name}


@pytest.mark.parametrize("handle", NAMED)
@pytest.mark.parametrize(("name", "error"), BAD_NAMES)
def test_a_bad_name_is_refused_at_the_call(
    cluster: MemoryCluster, handle: str, name: Any, error: type[Exception]
) -> None:
    before = entries(cluster)
    with pytest.raises(error):
        make(cluster, handle, **named(handle, name))
    assert entries(cluster) == before


@pytest.mark.parametrize("handle", NAMED)
def test_names_of_one_and_of_512_bytes_are_names(cluster: MemoryCluster, handle: str) -> None:
    for name in ("n", "n" * 512, "é" * 256):
        make(cluster, handle, **named(handle, name))


OPTIONS = [
    (handle, parameter.name)
    for handle, method in METHODS.items()
    for parameter in inspect.signature(method).parameters.values()
    if parameter.name not in ("self", "name", "names")
]


@pytest.mark.parametrize(("handle", "option"), OPTIONS)
def test_an_option_of_the_wrong_type_is_a_type_error_at_the_call(
    cluster: MemoryCluster, handle: str, option: str
) -> None:
    before = entries(cluster)
    # One of a few words is a value: another one is a wrong value, of whatever type.
    is_choice = "Literal" in str(inspect.signature(METHODS[handle]).parameters[option].annotation)
    with pytest.raises(errors.InvalidArgument if is_choice else TypeError):
        made = make(cluster, handle, **{option: object()})
        made.__enter__()  # where it is made for `with`, that is its call
    assert entries(cluster) == before


NUMBERS = [
    (handle, option, value)
    for handle, option in OPTIONS
    for value in {
        "timeout": (-1.0, float("nan")),
        "ttl": (-1.0, 0.0, float("inf")),
        "permits": (0, -1),
        "priority": (2**63,),
        "lock_delay": (-1.0,),
        "max_attempts": (0,),
        "block": (0, 10**9),
        "min_tenure": (-1.0,),
        "parties": (0,),
        "count": (0,),
    }.get(option, ())
]


@pytest.mark.parametrize(("handle", "option", "value"), NUMBERS)
def test_a_wrong_value_is_an_invalid_argument_at_the_call(
    cluster: MemoryCluster, handle: str, option: str, value: Any
) -> None:
    before = entries(cluster)
    with pytest.raises(errors.InvalidArgument) as refused:
        made = make(cluster, handle, **{option: value})
        made.__enter__()
    assert isinstance(refused.value, ValueError)
    assert entries(cluster) == before


VALUES: dict[str, Callable[[Any, bytes], Any]] = {
    "kv.put": lambda c, value: c.kv.put("k", value),
    "kv.cas": lambda c, value: c.kv.cas("k", None, value),
    "kv.batch": lambda c, value: c.kv.batch().__enter__().put("k", value),
    "set": lambda c, value: c.set("k", value),
    "queue.put": lambda c, value: c.queue("q").put(value),
    "queue.put_many": lambda c, value: c.queue("q").put_many([b"", value]),
    "queue.push": lambda c, value: c.queue("q").push("id", value),
    "election.campaign": lambda c, value: c.election("e").campaign(value, timeout=0),
    "leadership": lambda c, value: c.leadership("e", value).__enter__(),
}


@pytest.mark.parametrize("use", VALUES.values(), ids=VALUES)
def test_a_value_above_a_mebibyte_does_not_reach_the_log(
    cluster: MemoryCluster, use: Callable[[Any, bytes], Any]
) -> None:
    before = entries(cluster)
    with pytest.raises(errors.TooLarge):
        use(cluster, b"x" * (MIB + 1))
    with pytest.raises(errors.TooLarge):
        use(cluster, "é" * (MIB // 2 + 1))  # type: ignore[arg-type]  # counted as UTF-8
    with pytest.raises(TypeError):
        use(cluster, 5)  # type: ignore[arg-type]
    assert entries(cluster) == before


def test_a_value_of_a_mebibyte_is_stored(cluster: MemoryCluster) -> None:
    cluster.kv.put("large", b"x" * MIB)
    assert cluster.queue("large").put(b"x" * MIB).duplicate is False
    assert cluster.queue("large").pop().body == b"x" * MIB


# ---- waits ----


def in_a_thread(wait: Callable[[Any, float], Any]) -> Callable[[Any, float], Any]:
    """As another party than the one that occupies it."""

    def run(cluster: Any, patience: float) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(wait, cluster, patience).result()

    return run


class Turn:
    """The turn of ``once`` that another has."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._token = cluster.submit(Begin("w")).token

    def release(self) -> None:
        self._cluster.submit(GiveUpTurn("w", self._token))


class OnlyPartition:
    """What a worker has, all of it; the next waits."""

    worker: Any

    def __init__(self, cluster: Any) -> None:
        OnlyPartition.worker = cluster.partitioner("w", 1).__enter__()
        self._cluster = cluster
        # Without a handle, which would wait to be called.
        self._token = cluster.submit(TakePartition("w", self.worker._worker)).token

    def release(self) -> None:
        self._cluster.submit(ReleasePartition("w", 0, self._token))


# What occupies it and what then waits; the rest of a handle's waits stand in its own tests.
WAITS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, float], Any]]] = {
    "lock": (lambda c: c.lock("w").acquire(), lambda c, t: c.lock("w", reentrant="thread").acquire(timeout=t)),
    "lock_all": (lambda c: c.lock("w").acquire(), lambda c, t: c.lock_all(["v", "w"]).acquire(timeout=t)),
    "semaphore": (lambda c: c.semaphore("w", 1).acquire(), lambda c, t: c.semaphore("w", 1).acquire(timeout=t)),
    "rwlock": (
        lambda c: c.rwlock("w").write.acquire(),
        in_a_thread(lambda c, t: c.rwlock("w").read.acquire(timeout=t)),
    ),
    "queue": (lambda c: None, lambda c, t: c.queue("w").claim(timeout=t)),
    "election": (lambda c: c.election("w").campaign(b""), lambda c, t: c.election("w").campaign(b"", timeout=t)),
    "leadership": (lambda c: c.election("l").campaign(b""), lambda c, t: c.leadership("l", timeout=t).__enter__()),
    "gate": (lambda c: None, lambda c, t: c.gate("w").wait(timeout=t)),
    "double_barrier": (lambda c: None, lambda c, t: c.double_barrier("w", 2).enter(timeout=t)),
    "latch": (lambda c: None, lambda c, t: c.latch("w", 1).wait(timeout=t)),
    "once": (Turn, lambda c, t: c.once("w").run(lambda turn: b"", timeout=t)),
    "partitioner": (OnlyPartition, lambda c, t: OnlyPartition.worker.next(timeout=t)),
    "rate_limit": (
        lambda c: c.rate_limit("w", 0.1, 1).acquire(),
        lambda c, t: c.rate_limit("w", 0.1, 1).acquire(timeout=t),
    ),
}
WAITLESS = {
    "kv",
    "schedules",
    "fenced",
    "counter",
    "ids",
    "lease",
    "raft_leadership",
    "group",
}
# A wait that ends broken, not withdrawn, for all who take part.
BREAKS = {"cyclic_barrier"}


def test_every_handle_that_waits_is_asked() -> None:
    assert HANDLES.keys() <= WAITS.keys() | WAITLESS | BREAKS


@pytest.mark.parametrize("handle", [handle for handle in WAITS if handle in HANDLES])
def test_a_wait_that_ran_out_leaves_no_ghost(handle: str) -> None:
    occupy, wait = WAITS[handle]
    with tauraft.Cluster("/raft/waits", storage="memory") as cluster:
        held = occupy(cluster)
        for patience in (0, 0.05):
            with pytest.raises((errors.WaitTimeout, errors.QueueEmpty)):
                wait(cluster, patience)
            machine = cluster._caller.host.replica.machine  # type: ignore[union-attr]
            assert [session.tickets for session in machine.sessions if session.tickets] == []
        if held is not None:
            held.release()
            wait(cluster, 5)  # nobody is before us


# ---- what is there ----

# Those without an ``info``.
INFO: dict[str, Callable[[Any], Any]] = {
    "kv": lambda c: (c.kv.put("k", b"v"), c.kv.get("k"))[1],
    "fenced": lambda c: (c.kv.put("k", b"v"), c.fenced(1).get("k"))[1],
    "queue": lambda c: c.queue("i").stats(),
    "counter": lambda c: c.counter("i").get(),
    "schedules": lambda c: c.schedules.put("i", "@every 1h"),
}
WITH_INFO = [name for name, kind in HANDLES.items() if hasattr(getattr(tauraft, kind), "info")]
# Several locks are told one by one; ids by the handle alone; leadership by its election, and by `status`.
TOLD_ELSEWHERE = {"lock_all", "ids", "leadership", "raft_leadership"}


def test_every_handle_tells_its_state() -> None:
    assert HANDLES.keys() <= INFO.keys() | set(WITH_INFO) | TOLD_ELSEWHERE


@pytest.mark.parametrize("handle", [*INFO, *WITH_INFO])
def test_the_state_of_a_handle_is_a_typed_snapshot(cluster: MemoryCluster, handle: str) -> None:
    told = INFO[handle](cluster) if handle in INFO else make(cluster, handle).info()
    if type(told) in (int, bool):
        return
    assert dataclasses.is_dataclass(told)
    assert type(told).__module__ == "tauraft.types"
    assert hasattr(type(told), "__slots__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(told, dataclasses.fields(told)[0].name, None)
