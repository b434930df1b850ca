"""Is the installed wheel whole? Run by plain Python in an environment that has the wheel and nothing of the tree (.ci/run).

Every module imports; types are marked; the command answers; bundled plugins are found by entry point; and a message of
theirs goes through a log on disk and comes back as it was. Says what it did, or fails.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import tauraft

PACKAGES = ("tauraft", "tauraft_plugins", "tauraft_primitives")
# By its entry point alone, so pytest is there; all else must do without what the wheel does not ask for.
LOADED_BY_PYTEST = frozenset({"tauraft.testing.pytest_plugin"})


def import_everything() -> int:
    names = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        if not module.name.endswith("__main__") and module.name not in LOADED_BY_PYTEST
    ]
    for name in names:
        importlib.import_module(name)
    for name in dir(tauraft):
        getattr(tauraft, name)
    return len(names)


def check_command() -> str:
    told = subprocess.run(
        [Path(sys.executable).with_name("tauraft"), "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert told == f"tauraft {metadata.version('tauraft')}", told
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "acme-counter"
        command = [Path(sys.executable).with_name("tauraft"), "new-plugin", "acme-counter", "--directory", package]
        subprocess.run(command, check=True, capture_output=True)
        assert (package / "src" / "acme_counter" / "py.typed").is_file()
    return told


def send_a_message_through_a_log() -> None:
    from tauraft.core.messages import Entry, EntryKind
    from tauraft.plugin_manager import load_plugins
    from tauraft.storage.segment_log import SegmentLog
    from tauraft_primitives.kv.messages import Put

    registry = load_plugins()
    assert {point.name for point in metadata.entry_points(group="tauraft")} >= {"kv", "locks"}
    command = Put("key", b"value")
    with tempfile.TemporaryDirectory() as directory:
        log = SegmentLog(directory)
        log.open()
        log.append([Entry(1, 1, EntryKind.BATCH, registry.encode(command))])
        log.close()
        log = SegmentLog(directory)
        assert log.open().last_index == 1
        (entry,) = log.read(1, 2, 1_000_000)
        log.close()
    assert registry.decode(entry.data) == command


def main() -> None:
    installed = Path(tauraft.__file__).resolve()
    assert Path(sys.prefix).resolve() in installed.parents, f"{installed} is not the installed one"
    for package in PACKAGES:
        assert files(package).joinpath("py.typed").is_file(), f"{package} lost its py.typed"
    count = import_everything()
    version = check_command()
    send_a_message_through_a_log()
    print(f"{version}: {count} modules import, plugins are found, a log on disk gives back what it was given")


if __name__ == "__main__":
    main()
