"""`tauraft twin SOURCE [DESTINATION] [--check]`: the blocking twin of a handle, for whoever writes one."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("destination", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--check", is_flag=True, help="Write nothing; fail when DESTINATION is not what SOURCE gives now.")
@click.option(
    "--imports",
    "imports",
    multiple=True,
    metavar="MODULE=TWIN",
    help="SOURCE imports MODULE, whose twin is TWIN; may be repeated. tauraft's own are known.",
)
def twin(source: Path, destination: Path | None, check: bool, imports: tuple[str, ...]) -> int:
    """Generate the blocking twin of the async module SOURCE; by default into _blocking.py beside it."""
    from tauraft.twin import NoTwin, blocking

    destination = destination or source.with_name("_blocking.py")
    if destination.resolve() == source.resolve():
        raise click.UsageError(f"{source} would be overwritten by its own twin; name another destination")
    pairs = []
    for pair in imports:
        module, equals, own = pair.partition("=")
        if not equals or not module or not own:
            raise click.UsageError(f"--imports {pair}: write MODULE=TWIN, like acme.handle=acme._blocking")
        pairs.append((module, own))
    try:
        text = blocking(source.read_text(encoding="utf-8"), source.name, command="tauraft twin", twins=pairs)
    except (NoTwin, SyntaxError) as error:
        raise click.ClickException(str(error)) from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{source} is not UTF-8 text: {error}") from error
    if not check:
        destination.write_text(text, encoding="utf-8")
        click.echo(f"{destination} is the twin of {source}")
        return 0
    if not destination.exists() or destination.read_text(encoding="utf-8") != text:
        click.echo(f"tauraft: {destination} is not what {source} gives now; run `tauraft twin {source}`", err=True)
        return 1
    click.echo(f"{destination} is current")
    return 0
