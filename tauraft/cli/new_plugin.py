"""`tauraft new-plugin NAME`: a package with a state machine, its handles, types, tests and entry point. Its tests pass at once."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

import click


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to write it: new, or empty. NAME by default.",
)
def new_plugin(name: str, directory: Path | None) -> None:
    """Write a package with a plugin: NAME is OWNER-THING, like acme-counter."""
    names = names_of(name)
    place = Path(name) if directory is None else directory
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise click.ClickException(f"{place} exists and is not an empty directory; nothing was written")
    try:
        for path, text in rendered(names).items():
            file = place / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{place} cannot be written: {error.strerror}") from error
    click.echo(
        f"{place}: a package with the state machine {names['fsm']}. Try it: pip install -e {place}, then pytest there."
    )


def names_of(name: str) -> dict[str, str]:
    """What is called how. Raises ``click.BadParameter``."""
    parts = name.split("-")
    why = ""
    if len(parts) < 2:
        why = "put an owner before it, so that it is not confused with other people's state machines"
    elif not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)+", name):
        why = "use lower-case ASCII letters and digits, each part beginning with a letter, joined by single hyphens"
    elif parts[0] == "tauraft":
        why = "tauraft's own names begin so; put yours there"
    elif len(name) > 100:
        why = "it is longer than 100 characters"
    if why:
        raise click.BadParameter(f"{name!r} cannot name a plugin: {why}; write OWNER-THING, like acme-counter")
    owner, thing = parts[0], "_".join(parts[1:])
    return {
        "distribution": name,
        "package": f"{owner}_{thing}",
        "fsm": f"{owner}.{thing}",
        "class": "".join(part.capitalize() for part in parts),
        "view": f"{owner}_{thing}_counts",
    }


def rendered(names: dict[str, str]) -> dict[str, str]:
    """Path -> text."""
    from tauraft.twin import blocking

    templates = files("tauraft.cli") / "plugin_template"
    package = f"src/{names['package']}"

    def text(template: str) -> str:
        return Template((templates / f"{template}.template").read_text(encoding="utf-8")).substitute(names)

    found = {"pyproject.toml": text("pyproject.toml"), "README.md": text("README.md")}
    for module in ("__init__", "messages", "fsm", "handle"):
        found[f"{package}/{module}.py"] = text(f"{module}.py")
    found[f"{package}/_blocking.py"] = blocking(
        found[f"{package}/handle.py"], "handle.py", command="tauraft twin", twins=()
    )
    found[f"{package}/py.typed"] = ""
    found[f"tests/test_{names['package']}.py"] = text("test.py")
    return found
