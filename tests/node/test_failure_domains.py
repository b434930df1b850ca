"""What the quorum really spans is said: members on one disk are one failure (SAFETY 8)."""

from __future__ import annotations

import pytest

from tauraft.node import report
from tauraft.node.local_replica import Whereabouts
from tests.node.cluster import Cluster


@pytest.mark.parametrize(
    ("disks", "said"),
    [
        ("xyz", None),
        ("xxy", "survives processes, not this disk: 2 of 3 voters on one disk"),
        ("xxx", "survives processes, not this disk: 3 of 3 voters on one disk"),
    ],
)
def test_a_majority_on_one_disk_is_said_on_every_replica(disks: str, said: str | None) -> None:
    cluster = Cluster("abc").start()
    for letter, disk in zip("abc", disks, strict=True):
        cluster[letter].whereabouts = Whereabouts((), letter, f"machine of {disk}", disk)
    cluster.elect("a")
    cluster.tick(30)
    for letter in "abc":
        lines = [line for line in report.warnings(cluster[letter]) if "this disk" in line]
        assert lines == ([] if said is None else [said])
    assert report.status(cluster["b"])["disks"] == len(set(disks))


def test_the_same_device_of_two_machines_is_two_disks() -> None:
    cluster = Cluster("abc").start()
    for letter in "abc":
        cluster[letter].whereabouts = Whereabouts((), letter, f"machine {letter}", "2049")
    cluster.elect("a")
    cluster.tick(30)
    assert report.status(cluster["a"])["disks"] == report.status(cluster["a"])["hosts"] == 3
    assert not [line for line in report.warnings(cluster["a"]) if "this disk" in line]
