"""docs/hooks.md and ``tauraft.hookspecs`` say the same: every hook, its arguments, every number."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from tauraft import hookspecs
from tauraft.testing import MemoryCluster
from tests.plugins.test_hooks import Broken

PAGE = (Path(__file__).parent.parent.parent / "docs" / "hooks.md").read_text(encoding="utf-8")


def test_every_hook_is_there_with_its_arguments_and_none_besides() -> None:
    documented = re.findall(r"^### `(tauraft_\w+)\((.*?)\)`$", PAGE, flags=re.MULTILINE)
    specified = [
        (name, ", ".join(inspect.signature(hook).parameters))
        for name, hook in vars(hookspecs).items()
        if name.startswith("tauraft_")
    ]
    assert sorted(documented) == sorted(specified)


def test_every_hook_says_where_it_is_called() -> None:
    for name, hook in vars(hookspecs).items():
        if name.startswith("tauraft_"):
            assert hook.__doc__ and re.search(r"engine|hook thread|command line", " ".join(hook.__doc__.split())), name


def test_every_number_is_in_the_table_with_its_kind() -> None:
    plugin = Broken()
    with MemoryCluster(plugins=[plugin]) as cluster:
        cluster.kv.put("k", b"v")
    rows = re.findall(r"^\| ((?:`tauraft_\w+`(?:, )?)+) \| (counter|gauge) \|", PAGE, flags=re.MULTILINE)
    documented = {(name, kind) for names, kind in rows for name in re.findall(r"\w+", names)}
    assert documented == {(sample.name, sample.kind) for sample in plugin.samples}
