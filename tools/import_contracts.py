"""The two kinds of import contract that pyproject.toml states, for import-linter.

``only``:  what ``sources`` import directly is ``allowed``, or the standard library; anything else breaks the contract.
           A new module is covered without being listed.
``never``: no chain of imports, however long, leads from ``sources`` to ``forbidden``.

Import-linter's own ``forbidden`` contract wants every forbidden module named and existing; these take patterns
(``tauraft_primitives.*.messages``; ``*`` is one name), mean a module with all that is under it, and are content
when nothing matches yet, so that a contract may be stated before the room it protects is built.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def _matcher(patterns: set[str]) -> re.Pattern[str]:
    """Matches a module that one of ``patterns`` names, or that lies under it."""
    named = (re.escape(pattern).replace(r"\*", r"[^.]+") for pattern in sorted(patterns))
    return re.compile(rf"(?:{'|'.join(named)})(?:\..+)?")


class OnlyContract(Contract):
    """Of all modules, ``sources`` import directly those ``allowed``; the standard library is free."""

    type_name = "only"
    sources: Any = fields.SetField(subfield=fields.StringField())
    allowed: Any = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        source, allowed = _matcher(self.sources), _matcher(self.allowed)
        wrong = sorted(
            (importer, imported)
            for importer in graph.modules
            if source.fullmatch(importer)
            for imported in graph.find_modules_directly_imported_by(importer)
            if not allowed.fullmatch(imported) and imported.partition(".")[0] not in sys.stdlib_module_names
        )
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["wrong"]:
            output.print_error(f"{importer} imports {imported}")


class NeverContract(Contract):
    """No chain of imports leads from ``sources`` to ``forbidden``."""

    type_name = "never"
    sources: Any = fields.SetField(subfield=fields.StringField())
    forbidden: Any = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        source, forbidden = _matcher(self.sources), _matcher(self.forbidden)
        chains: list[Any] = []
        for importer in sorted(filter(source.fullmatch, graph.modules)):
            # Only what it reaches at all is worth the search for the way there.
            reached = sorted(filter(forbidden.fullmatch, graph.find_upstream_modules(importer)))
            chains += [graph.find_shortest_chain(importer, module) for module in reached[:1]]
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for chain in check.metadata["chains"]:
            output.print_error(" -> ".join(chain))
