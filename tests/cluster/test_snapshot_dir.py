"""``snapshot_dir``: snapshots apart from the log, of several nodes in one directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tauraft.errors import DataDirectoryError
from tests.cluster.nodes import Nodes

pytestmark = pytest.mark.middle


def test_snapshots_of_several_nodes_stand_in_one_directory_and_are_read_from_there(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "snapshots"
    made = [
        nodes.make(name, namespace=f"/raft/{name}", snapshot_dir=shared, discovery=(), bootstrap_timeout=0).start(
            timeout=20
        )
        for name in ("a", "b")
    ]
    manifests = []
    for node in made:
        node.set("of", node.namespace)
        index = node.snapshot()
        folder = shared / node.peer_id / node.namespace[1:].replace("/", "-")
        (manifest,) = folder.glob(f"{index:020d}-*/manifest")
        manifests.append(manifest)
        assert not any((tmp_path / node.namespace[-1]).rglob("manifest"))
        node.close()

    manifests[0].write_bytes(b"not a manifest")
    for name in ("a", "b"):
        again = nodes.make(name, namespace=f"/raft/{name}", snapshot_dir=shared, discovery=(), bootstrap_timeout=0)
        assert again.start(timeout=20).get("of") == f"/raft/{name}".encode()
    assert f"skipping snapshot {manifests[0].parent.name} in {manifests[0].parent.parent}" in caplog.text
    assert manifests[1].parent.name not in caplog.text


def test_a_snapshot_dir_that_cannot_be_made_is_named(nodes: Nodes, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such"
    with pytest.raises(DataDirectoryError, match=str(missing)):
        nodes.make("a", snapshot_dir=missing).start(timeout=20)
