"""Coordination inside your own Python processes: ``import tauraft`` is all a user imports.

It costs nothing to import: no libp2p, DuckDB, trio or cryptography before one is needed.  A name is fetched from its
room when it is first used (PEP 562) and kept; ``_ROOMS`` says where each one lives, and the imports under
``TYPE_CHECKING`` say the same to type checkers.  tests/project/test_imports.py holds the two together.
To export a name: add it to ``_ROOMS``, and to the imports below.
"""

from __future__ import annotations

import importlib
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

# Room -> the names it gives.
_ROOMS: Final = {
    "tauraft._blocking.cluster": ("Client", "Cluster", "Node"),
    "tauraft._blocking.primitives": ("Past", "Primitives", "Session"),
    "tauraft.cluster": ("AsyncClient", "AsyncCluster", "AsyncNode"),
    "tauraft.errors": (
        "AlreadyClosed",
        "BrokenBarrier",
        "CommandFailed",
        "Compacted",
        "CompareFailed",
        "DataDirectoryError",
        "Deadlock",
        "ForkedProcess",
        "InvalidArgument",
        "InvalidBarrier",
        "InvalidCommand",
        "InvalidNamespace",
        "InvalidOption",
        "InvalidSpec",
        "InvalidTimeout",
        "LeadershipLost",
        "LockLost",
        "MemberExists",
        "Mismatch",
        "NoCandidate",
        "NoLeader",
        "NotHolder",
        "NotLeader",
        "Outcome",
        "Overloaded",
        "PluginMissing",
        "QueueEmpty",
        "Refused",
        "SessionLost",
        "Shutdown",
        "SplitBrain",
        "StaleClaim",
        "StaleToken",
        "Suspended",
        "TauraftError",
        "TooLarge",
        "Unavailable",
        "UpgradeRefused",
        "WaitTimeout",
        "WrongKey",
    ),
    "tauraft.fsm": ("Command", "Query"),
    "tauraft.handle": ("AsyncSignal", "AsyncSubmitter", "AsyncWatch", "Signal", "Submitter", "Watch"),
    "tauraft.hookspecs": ("hookimpl",),
    "tauraft.primitives": ("AsyncPast", "AsyncPrimitives", "AsyncSession"),
    "tauraft.types": (
        "BarrierInfo",
        "Bytes",
        "Compare",
        "Consistency",
        "ElectionInfo",
        "Enqueued",
        "Entry",
        "GateInfo",
        "GroupInfo",
        "GroupMember",
        "Item",
        "JobInfo",
        "LatchInfo",
        "Leader",
        "LeaseInfo",
        "LockBreak",
        "LockInfo",
        "Member",
        "OnLoss",
        "OnceInfo",
        "Owner",
        "Page",
        "PartitionInfo",
        "PartitionsInfo",
        "PutResult",
        "QueueStats",
        "RateInfo",
        "Revision",
        "Rows",
        "RwLockInfo",
        "SemaphoreInfo",
        "Status",
        "TickRow",
        "TickState",
        "TransactionResult",
    ),
    "tauraft_primitives.barriers._blocking": ("CyclicBarrier", "DoubleBarrier", "Gate", "Latch"),
    "tauraft_primitives.barriers.handle": ("AsyncCyclicBarrier", "AsyncDoubleBarrier", "AsyncGate", "AsyncLatch"),
    "tauraft_primitives.counters._blocking": ("Counter", "Ids"),
    "tauraft_primitives.counters.handle": ("AsyncCounter", "AsyncIds"),
    "tauraft_primitives.cron._blocking": ("Schedules", "Tick"),
    "tauraft_primitives.cron.handle": ("AsyncSchedules", "AsyncTick"),
    "tauraft_primitives.elections._blocking": ("Election", "Leading", "RaftLeadership", "Term"),
    "tauraft_primitives.elections.handle": ("AsyncElection", "AsyncLeading", "AsyncRaftLeadership", "AsyncTerm"),
    "tauraft_primitives.groups._blocking": ("Group", "Membership"),
    "tauraft_primitives.groups.handle": ("AsyncGroup", "AsyncMembership"),
    "tauraft_primitives.once._blocking": ("Once", "Turn"),
    "tauraft_primitives.once.handle": ("AsyncOnce", "AsyncTurn"),
    "tauraft_primitives.partitions._blocking": ("Partition", "Partitioner"),
    "tauraft_primitives.partitions.handle": ("AsyncPartition", "AsyncPartitioner"),
    "tauraft_primitives.rates._blocking": ("RateLimit",),
    "tauraft_primitives.rates.handle": ("AsyncRateLimit",),
    "tauraft_primitives.kv._blocking": ("KV",),
    "tauraft_primitives.kv.handle": ("AsyncKV", "Batch"),
    "tauraft_primitives.kv.transaction": ("Transaction",),
    "tauraft_primitives.leases._blocking": ("Lease",),
    "tauraft_primitives.leases.handle": ("AsyncLease",),
    "tauraft_primitives.queues._blocking": ("Claim", "Queue"),
    "tauraft_primitives.queues.handle": ("AsyncClaim", "AsyncClaiming", "AsyncQueue"),
    "tauraft_primitives.holds._blocking": ("Hold",),
    "tauraft_primitives.holds.handle": ("AsyncHold",),
    "tauraft_primitives.locks._blocking": ("Lock", "LockAll"),
    "tauraft_primitives.locks.handle": ("AsyncLock", "AsyncLockAll"),
    "tauraft_primitives.rwlocks._blocking": ("RwHold", "RwLock", "RwMode"),
    "tauraft_primitives.rwlocks.handle": ("AsyncRwHold", "AsyncRwLock", "AsyncRwMode"),
    "tauraft_primitives.semaphores._blocking": ("Semaphore",),
    "tauraft_primitives.semaphores.handle": ("AsyncSemaphore",),
}
_ROOM_OF: Final = MappingProxyType({name: room for room, names in _ROOMS.items() for name in names})

# A library says nothing unless it is asked to.
logging.getLogger("tauraft").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tauraft")
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'tauraft' has no attribute {name!r}")
    value = getattr(importlib.import_module(room), name)
    # Kept, so that the next use is an ordinary look-up.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF, "__version__"})


if TYPE_CHECKING:
    __version__: str
    from tauraft._blocking.cluster import Client as Client, Cluster as Cluster, Node as Node
    from tauraft._blocking.primitives import Past as Past, Primitives as Primitives, Session as Session
    from tauraft.cluster import AsyncClient as AsyncClient, AsyncCluster as AsyncCluster, AsyncNode as AsyncNode
    from tauraft.errors import (
        AlreadyClosed as AlreadyClosed,
        BrokenBarrier as BrokenBarrier,
        CommandFailed as CommandFailed,
        Compacted as Compacted,
        CompareFailed as CompareFailed,
        DataDirectoryError as DataDirectoryError,
        Deadlock as Deadlock,
        ForkedProcess as ForkedProcess,
        InvalidArgument as InvalidArgument,
        InvalidBarrier as InvalidBarrier,
        InvalidCommand as InvalidCommand,
        InvalidNamespace as InvalidNamespace,
        InvalidOption as InvalidOption,
        InvalidSpec as InvalidSpec,
        InvalidTimeout as InvalidTimeout,
        LeadershipLost as LeadershipLost,
        LockLost as LockLost,
        MemberExists as MemberExists,
        Mismatch as Mismatch,
        NoCandidate as NoCandidate,
        NoLeader as NoLeader,
        NotHolder as NotHolder,
        NotLeader as NotLeader,
        Outcome as Outcome,
        Overloaded as Overloaded,
        PluginMissing as PluginMissing,
        QueueEmpty as QueueEmpty,
        Refused as Refused,
        SessionLost as SessionLost,
        Shutdown as Shutdown,
        SplitBrain as SplitBrain,
        StaleClaim as StaleClaim,
        StaleToken as StaleToken,
        Suspended as Suspended,
        TauraftError as TauraftError,
        TooLarge as TooLarge,
        Unavailable as Unavailable,
        UpgradeRefused as UpgradeRefused,
        WaitTimeout as WaitTimeout,
        WrongKey as WrongKey,
    )
    from tauraft.fsm import Command as Command, Query as Query
    from tauraft.handle import (
        AsyncSignal as AsyncSignal,
        AsyncSubmitter as AsyncSubmitter,
        AsyncWatch as AsyncWatch,
        Signal as Signal,
        Submitter as Submitter,
        Watch as Watch,
    )
    from tauraft.hookspecs import hookimpl as hookimpl
    from tauraft.primitives import (
        AsyncPast as AsyncPast,
        AsyncPrimitives as AsyncPrimitives,
        AsyncSession as AsyncSession,
    )
    from tauraft.types import (
        BarrierInfo as BarrierInfo,
        Bytes as Bytes,
        Compare as Compare,
        Consistency as Consistency,
        ElectionInfo as ElectionInfo,
        Enqueued as Enqueued,
        Entry as Entry,
        GateInfo as GateInfo,
        GroupInfo as GroupInfo,
        GroupMember as GroupMember,
        Item as Item,
        JobInfo as JobInfo,
        LatchInfo as LatchInfo,
        Leader as Leader,
        LeaseInfo as LeaseInfo,
        LockBreak as LockBreak,
        LockInfo as LockInfo,
        Member as Member,
        OnceInfo as OnceInfo,
        OnLoss as OnLoss,
        Owner as Owner,
        Page as Page,
        PartitionInfo as PartitionInfo,
        PartitionsInfo as PartitionsInfo,
        PutResult as PutResult,
        QueueStats as QueueStats,
        RateInfo as RateInfo,
        Revision as Revision,
        Rows as Rows,
        RwLockInfo as RwLockInfo,
        SemaphoreInfo as SemaphoreInfo,
        Status as Status,
        TickRow as TickRow,
        TickState as TickState,
        TransactionResult as TransactionResult,
    )
    from tauraft_primitives.barriers._blocking import (
        CyclicBarrier as CyclicBarrier,
        DoubleBarrier as DoubleBarrier,
        Gate as Gate,
        Latch as Latch,
    )
    from tauraft_primitives.barriers.handle import (
        AsyncCyclicBarrier as AsyncCyclicBarrier,
        AsyncDoubleBarrier as AsyncDoubleBarrier,
        AsyncGate as AsyncGate,
        AsyncLatch as AsyncLatch,
    )
    from tauraft_primitives.counters._blocking import Counter as Counter, Ids as Ids
    from tauraft_primitives.counters.handle import AsyncCounter as AsyncCounter, AsyncIds as AsyncIds
    from tauraft_primitives.cron._blocking import Schedules as Schedules, Tick as Tick
    from tauraft_primitives.cron.handle import AsyncSchedules as AsyncSchedules, AsyncTick as AsyncTick
    from tauraft_primitives.elections._blocking import (
        Election as Election,
        Leading as Leading,
        RaftLeadership as RaftLeadership,
        Term as Term,
    )
    from tauraft_primitives.elections.handle import (
        AsyncElection as AsyncElection,
        AsyncLeading as AsyncLeading,
        AsyncRaftLeadership as AsyncRaftLeadership,
        AsyncTerm as AsyncTerm,
    )
    from tauraft_primitives.groups._blocking import Group as Group, Membership as Membership
    from tauraft_primitives.groups.handle import AsyncGroup as AsyncGroup, AsyncMembership as AsyncMembership
    from tauraft_primitives.holds._blocking import Hold as Hold
    from tauraft_primitives.holds.handle import AsyncHold as AsyncHold
    from tauraft_primitives.kv._blocking import KV as KV
    from tauraft_primitives.kv.handle import AsyncKV as AsyncKV, Batch as Batch
    from tauraft_primitives.kv.transaction import Transaction as Transaction
    from tauraft_primitives.leases._blocking import Lease as Lease
    from tauraft_primitives.leases.handle import AsyncLease as AsyncLease
    from tauraft_primitives.locks._blocking import Lock as Lock, LockAll as LockAll
    from tauraft_primitives.locks.handle import AsyncLock as AsyncLock, AsyncLockAll as AsyncLockAll
    from tauraft_primitives.once._blocking import Once as Once, Turn as Turn
    from tauraft_primitives.once.handle import AsyncOnce as AsyncOnce, AsyncTurn as AsyncTurn
    from tauraft_primitives.partitions._blocking import Partition as Partition, Partitioner as Partitioner
    from tauraft_primitives.partitions.handle import (
        AsyncPartition as AsyncPartition,
        AsyncPartitioner as AsyncPartitioner,
    )
    from tauraft_primitives.queues._blocking import Claim as Claim, Queue as Queue
    from tauraft_primitives.queues.handle import (
        AsyncClaim as AsyncClaim,
        AsyncClaiming as AsyncClaiming,
        AsyncQueue as AsyncQueue,
    )
    from tauraft_primitives.rates._blocking import RateLimit as RateLimit
    from tauraft_primitives.rates.handle import AsyncRateLimit as AsyncRateLimit
    from tauraft_primitives.rwlocks._blocking import RwHold as RwHold, RwLock as RwLock, RwMode as RwMode
    from tauraft_primitives.rwlocks.handle import (
        AsyncRwHold as AsyncRwHold,
        AsyncRwLock as AsyncRwLock,
        AsyncRwMode as AsyncRwMode,
    )
    from tauraft_primitives.semaphores._blocking import Semaphore as Semaphore
    from tauraft_primitives.semaphores.handle import AsyncSemaphore as AsyncSemaphore
