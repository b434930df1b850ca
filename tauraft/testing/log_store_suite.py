"""What every ``LogStore`` must pass: ours, and those that third parties bring by ``tauraft_log_store``.

``check_log_store(place)`` runs all of it; ``CHECKS`` are the single behaviours, for one test each.
A *place* is a callable that makes a fresh, empty home for a log and returns a callable that makes a store
on that home: called twice it gives the log of the same home again, as after a restart.

``check_power_cuts`` is for stores that reach the disk through ``FileSystem``: the machine dies in place of each
operation in turn, comes back with one of the states a disk may be in, and the log must hold everything
acknowledged, and of the call under way all or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol, TypeAlias

from tauraft.core.messages import Entry, EntryKind, HardState, Index, Member, Membership, SnapshotMeta, Term
from tauraft.storage.file_system import FileSystem, MemoryFileSystem, PowerLost
from tauraft.storage.log_store import Compacted, LogStore, Recovered

Home: TypeAlias = Callable[[], LogStore]
Place: TypeAlias = Callable[[], Home]

ALICE, BOB = Member("alice", 7), Member("bob", 2**63)
EVERYTHING = 1 << 40


def make_entries(first: Index, last: Index, term: Term = 1, size: int = 20) -> list[Entry]:
    """``first..last`` inclusive, each with data of its own."""
    return [
        Entry(index, term, EntryKind.BATCH, f"{index}/{term};".encode().ljust(size, b".")[:size])
        for index in range(first, last + 1)
    ]


def make_meta(index: Index, term: Term) -> SnapshotMeta:
    return SnapshotMeta(
        index, term, Membership(frozenset({ALICE, BOB}), learners=frozenset({Member("carol", 1)})), b"id"
    )


class Changes(Protocol):
    """The calls that change a log: what a step of a random life is done to, store and model alike."""

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> None: ...

    def save_hard_state(self, hard_state: HardState) -> None: ...

    def truncate_suffix(self, keep_to: Index) -> None: ...

    def reset_at(self, meta: SnapshotMeta, hard_state: HardState | None = None) -> None: ...

    def compact_prefix(self, up_to: Index) -> None: ...


Step: TypeAlias = Callable[[Changes], None]


@dataclass
class Model:
    """What a log should hold, kept in the plainest way."""

    base: Index = 0
    base_term: Term = 0
    entries: list[Entry] = field(default_factory=list)
    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None

    @property
    def last_index(self) -> Index:
        return self.base + len(self.entries)

    def copy(self) -> Model:
        return replace(self, entries=list(self.entries))

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> None:
        if entries:
            self.entries[entries[0].index - self.base - 1 :] = entries
        self.hard_state = hard_state or self.hard_state

    def save_hard_state(self, hard_state: HardState) -> None:
        self.hard_state = hard_state

    def truncate_suffix(self, keep_to: Index) -> None:
        del self.entries[keep_to - self.base :]

    def reset_at(self, meta: SnapshotMeta, hard_state: HardState | None = None) -> None:
        self.base, self.base_term, self.snapshot, self.entries = meta.index, meta.term, meta, []
        self.hard_state = hard_state or self.hard_state

    def compact_prefix(self, up_to: Index) -> None:
        if up_to > self.base:
            self.base_term = self.entries[up_to - self.base - 1].term
            del self.entries[: up_to - self.base]
            self.base, self.snapshot = up_to, None

    def describes(self, store: LogStore, recovered: Recovered) -> bool:
        return (
            (recovered.first_index, recovered.last_index) == (self.base + 1, self.last_index)
            and recovered.hard_state == self.hard_state
            and recovered.snapshot == self.snapshot
            and store.term(self.base) == self.base_term
            and store.read(self.base + 1, self.last_index + 1, EVERYTHING) == self.entries
        )


def _assert_same(store: LogStore, model: Model) -> None:
    first, last = model.base + 1, model.last_index
    assert (store.first_index, store.last_index) == (first, last), (store.first_index, store.last_index, first, last)
    assert store.read(first, last + 1, EVERYTHING) == model.entries
    assert store.term(model.base) == model.base_term
    assert [store.term(entry.index) for entry in model.entries] == [entry.term for entry in model.entries]


def _assert_reopens_as(home: Home, store: LogStore, model: Model) -> LogStore:
    """Close, open again, compare; returns the new store."""
    store.close()
    store = home()
    recovered = store.open()
    assert model.describes(store, recovered), (recovered, model)
    assert not recovered.is_tail_suspect
    _assert_same(store, model)
    return store


def _opened(home: Home) -> LogStore:
    store = home()
    store.open()
    return store


def a_new_log_is_empty(place: Place) -> None:
    store = place()()
    recovered = store.open()
    assert recovered == Recovered(1, 0, HardState(), None, False), recovered
    assert store.term(0) == 0
    assert store.read(1, 1, EVERYTHING) == []
    store.close()


def what_was_appended_is_there_after_a_restart(place: Place) -> None:
    home = place()
    store, model = _opened(home), Model()
    hard_state = HardState(3, BOB, 2)
    for target in (store, model):
        target.append(make_entries(1, 3))
        target.append([Entry(4, 2, EntryKind.NOOP), Entry(5, 3, EntryKind.CONFIG, bytes(range(256)))], hard_state)
    _assert_same(store, model)
    _assert_reopens_as(home, store, model).close()


def a_hard_state_is_kept_without_entries(place: Place) -> None:
    home = place()
    store = _opened(home)
    store.append(make_entries(1, 2), HardState(1, ALICE, 1))
    store.save_hard_state(HardState(9, None, 2))
    _assert_reopens_as(home, store, Model(entries=make_entries(1, 2), hard_state=HardState(9, None, 2))).close()


def an_append_below_the_end_replaces_from_there(place: Place) -> None:
    home = place()
    store, model = _opened(home), Model()
    for target in (store, model):
        target.append(make_entries(1, 10))
        target.append(make_entries(4, 6, term=2))
    _assert_same(store, model)
    store = _assert_reopens_as(home, store, model)
    store.append(make_entries(7, 9, term=2))
    model.append(make_entries(7, 9, term=2))
    _assert_reopens_as(home, store, model).close()


def a_truncated_suffix_stays_away(place: Place) -> None:
    home = place()
    store, model = _opened(home), Model()
    for target in (store, model):
        target.append(make_entries(1, 10))
        target.truncate_suffix(6)
        target.truncate_suffix(6)
        target.append(make_entries(7, 8, term=5))
    store = _assert_reopens_as(home, store, model)
    store.truncate_suffix(0)
    model.truncate_suffix(0)
    _assert_reopens_as(home, store, model).close()


def a_reset_drops_everything_and_names_the_snapshot(place: Place) -> None:
    home = place()
    store, model = _opened(home), Model()
    for target in (store, model):
        target.append(make_entries(1, 10), HardState(1, ALICE, 5))
        target.reset_at(make_meta(100, 4), HardState(4, None, 100))
    _assert_same(store, model)
    store = _assert_reopens_as(home, store, model)
    for target in (store, model):
        target.append(make_entries(101, 120, term=4))
        target.reset_at(make_meta(110, 4))  # the log has more than the snapshot
    store = _assert_reopens_as(home, store, model)
    _assert_raises(ValueError, lambda: store.append(make_entries(110, 111)))
    store.close()


def compacted_entries_are_refused_and_the_base_keeps_its_term(place: Place) -> None:
    home = place()
    store, model = _opened(home), Model()
    for target in (store, model):
        target.append(make_entries(1, 5, term=1))
        target.append(make_entries(6, 10, term=2))
        target.compact_prefix(7)
        target.compact_prefix(3)
    _assert_same(store, model)
    store = _assert_reopens_as(home, store, model)
    assert store.term(7) == 2
    _assert_raises(Compacted, lambda: store.read(7, 9, EVERYTHING))
    _assert_raises(Compacted, lambda: store.term(6))
    for target in (store, model):
        target.compact_prefix(10)  # all of it
        target.append(make_entries(11, 12, term=3))
    _assert_reopens_as(home, store, model).close()


def a_read_stops_at_the_bytes_allowed_but_gives_one(place: Place) -> None:
    home = place()
    store = _opened(home)
    store.append(make_entries(1, 10, size=100))
    _assert_reads_within_limits(store)
    store = _assert_reopens_as(home, store, Model(entries=make_entries(1, 10, size=100)))
    _assert_reads_within_limits(store)
    store.close()


def _assert_reads_within_limits(store: LogStore) -> None:
    for low, high, max_bytes, count in ((1, 11, 0, 1), (1, 11, 99, 1), (1, 11, 250, 2), (3, 6, 300, 3), (3, 6, 999, 3)):
        assert store.read(low, high, max_bytes) == make_entries(low, low + count - 1, size=100)


def what_does_not_fit_is_refused_and_changes_nothing(place: Place) -> None:
    home = place()
    store, model = _opened(home), Model()
    for target in (store, model):
        target.append(make_entries(1, 4))
        target.compact_prefix(2)
    _assert_raises(ValueError, lambda: store.append(make_entries(6, 7)))
    _assert_raises(ValueError, lambda: store.append(make_entries(2, 7)))
    _assert_raises(ValueError, lambda: store.append([*make_entries(5, 5), *make_entries(7, 7)]))
    _assert_raises(ValueError, lambda: store.read(3, 6, EVERYTHING))
    _assert_raises(ValueError, lambda: store.term(5))
    _assert_raises(Compacted, lambda: store.truncate_suffix(1))
    _assert_reopens_as(home, store, model).close()


def a_large_entry_is_kept_whole(place: Place) -> None:
    home = place()
    store = _opened(home)
    entries = [*make_entries(1, 1), Entry(2, 1, EntryKind.BATCH, bytes(range(256)) * 8192), *make_entries(3, 3)]
    store.append(entries[:1])
    store.append(entries[1:])
    _assert_reopens_as(home, store, Model(entries=entries)).close()


def closing_twice_is_fine(place: Place) -> None:
    store = _opened(place())
    store.close()
    store.close()


def a_long_random_life_matches_the_model(place: Place) -> None:
    for seed in range(3):
        _live(place(), Random(seed))


def _live(home: Home, random: Random) -> None:
    store, model = _opened(home), Model()
    term = 1
    for _ in range(60):
        term += random.random() < 0.1
        step = random_step(random, model, term)
        step(store)
        step(model)
        if random.random() < 0.1:
            store = _assert_reopens_as(home, store, model)
    _assert_same(store, model)
    _assert_reopens_as(home, store, model).close()


def random_step(random: Random, model: Model, term: Term) -> Step:
    """One call that fits a log as ``model`` describes."""
    choice = random.random()
    last = model.last_index
    hard_state = HardState(term, random.choice([None, ALICE, BOB]), random.randint(0, last))
    if choice < 0.6:
        first = last + 1 if random.random() < 0.8 else random.randint(model.base + 1, last + 1)
        entries = make_entries(first, first + random.randint(0, 12), term, random.choice([0, 10, 300]))
        attached = random.choice([None, hard_state])
        return lambda store: store.append(entries, attached)
    if choice < 0.7:
        return lambda store: store.save_hard_state(hard_state)
    if choice < 0.8:
        keep_to = random.randint(model.base, last)
        return lambda store: store.truncate_suffix(keep_to)
    if choice < 0.95:
        up_to = random.randint(model.base, last)
        return lambda store: store.compact_prefix(up_to)
    meta = make_meta(random.randint(model.base + 1, last + 20), term)
    return lambda store: store.reset_at(meta, hard_state)


def _assert_raises(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


CHECKS: tuple[Callable[[Place], None], ...] = (
    a_new_log_is_empty,
    what_was_appended_is_there_after_a_restart,
    a_hard_state_is_kept_without_entries,
    an_append_below_the_end_replaces_from_there,
    a_truncated_suffix_stays_away,
    a_reset_drops_everything_and_names_the_snapshot,
    compacted_entries_are_refused_and_the_base_keeps_its_term,
    a_read_stops_at_the_bytes_allowed_but_gives_one,
    what_does_not_fit_is_refused_and_changes_nothing,
    a_large_entry_is_kept_whole,
    closing_twice_is_fine,
    a_long_random_life_matches_the_model,
)


def check_log_store(place: Place) -> None:
    """Raises ``AssertionError`` for the first promise of ``LogStore`` that the store does not keep."""
    for check in CHECKS:
        try:
            check(place)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def check_power_cuts(
    make: Callable[[FileSystem], LogStore], *, steps: int = 14, seeds: Sequence[int] = range(4)
) -> int:
    """Cut the power in place of every file operation of a random life, and look at what comes back.

    ``make`` makes a store on the file system it is given. Returns how many cuts were tried.
    """
    cuts = 0
    for seed in seeds:
        operations = _operations_of(make, seed, steps)
        for operation in range(operations):
            _check_one_cut(make, seed, steps, operation)
            cuts += 1
    return cuts


def _operations_of(make: Callable[[FileSystem], LogStore], seed: int, steps: int) -> int:
    files = MemoryFileSystem()
    store = make(files)
    store.open()
    random, model = Random(seed), Model()
    for _ in range(steps):
        step = random_step(random, model, 1)
        step(store)
        step(model)
    return files.operations


def _check_one_cut(make: Callable[[FileSystem], LogStore], seed: int, steps: int, operation: int) -> None:
    files = MemoryFileSystem()
    files.lose_power_after(operation)
    acknowledged, attempted = Model(), Model()
    random = Random(seed)
    try:
        store = make(files)
        store.open()
        for _ in range(steps):
            step = random_step(random, acknowledged, 1)
            step(attempted)
            step(store)
            step(acknowledged)
    except PowerLost:
        pass
    where = f"seed {seed}, power lost at operation {operation}"
    disk = Random(f"{seed} {operation}")
    for _ in range(2):
        files.reboot(disk)
        store = make(files)
        recovered = store.open()
        found = [model for model in (attempted, acknowledged) if model.describes(store, recovered)]
        assert found, f"{where}: {recovered}, neither {attempted} nor {acknowledged}"
        acknowledged, attempted = found[0].copy(), found[0].copy()
        more = make_entries(acknowledged.last_index + 1, acknowledged.last_index + 3, 9)
        attempted.append(more)
        if disk.random() < 0.5:
            store.append(more)
            store.confirm_tail()
            acknowledged.append(more)
