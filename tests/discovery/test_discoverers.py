from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest

from tauraft.discovery.discovery import Discoverer, Found
from tauraft.discovery.local_host import LocalHostDiscoverer, boot_id, process_start
from tauraft.discovery.static import StaticDiscoverer


async def first(discoverer: Discoverer) -> Found:
    async for found in discoverer.find():
        return found
    raise AssertionError("nothing found")


def test_named_peers_are_found_with_the_id_their_address_ends_in() -> None:
    assert anyio.run(first, StaticDiscoverer(["/ip4/h/tcp/1/p2p/abc"])) == Found("abc", ("/ip4/h/tcp/1/p2p/abc",))
    assert anyio.run(first, StaticDiscoverer(["/ip4/h/tcp/1"])) == Found(None, ("/ip4/h/tcp/1",))


def test_two_nodes_of_a_host_find_each_other_and_not_themselves(tmp_path: Path) -> None:
    one, two = LocalHostDiscoverer(tmp_path / "d"), LocalHostDiscoverer(tmp_path / "d")

    async def main() -> None:
        await one.announce("one", ["/a"])
        await two.announce("two", ["/b"])
        assert await first(one) == Found("two", ("/b",), is_running=True)
        assert await first(two) == Found("one", ("/a",), is_running=True)
        await two.withdraw()
        assert one.look() == []

    anyio.run(main)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", [{"boot": "earlier"}, {"start": "1"}, {"pid": 2**22 + 7}])
def test_the_file_of_a_dead_process_is_ignored_and_removed(tmp_path: Path, change: dict[str, object]) -> None:
    tmp_path.chmod(0o700)
    record = {"addresses": ["/a"], "pid": os.getpid(), "boot": boot_id(), "start": process_start(os.getpid())}
    path = tmp_path / "dead.json"
    path.write_text(json.dumps(record))
    assert LocalHostDiscoverer(tmp_path).look() == [Found("dead", ("/a",), is_running=True)]
    path.write_text(json.dumps(record | change))
    assert LocalHostDiscoverer(tmp_path).look() == []
    assert not path.exists()


def test_a_directory_others_may_write_and_links_are_not_trusted(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PermissionError):
        anyio.run(LocalHostDiscoverer(shared).announce, "one", ["/a"])
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (tmp_path / "other.json").write_text("{}")
    (mine / "link.json").symlink_to(tmp_path / "other.json")
    (mine / "torn.json").write_text("{")
    assert LocalHostDiscoverer(mine).look() == []
