"""``python -m tauraft.simulator SEED [--count N]``: play seeds, one line each; stops at the first that fails."""

from __future__ import annotations

import click

from tauraft.simulator.runs import play


@click.command()
@click.argument("seed", type=int)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="How many, from SEED on.")
def main(seed: int, count: int) -> None:
    for number in range(seed, seed + count):
        outcome = play(number)
        click.echo(
            f"seed {number}: {outcome.acknowledged} acknowledged, {outcome.counted} counted under {outcome.holds} holds; "
            f"{', '.join(outcome.faults)}; trace {outcome.trace}"
        )


if __name__ == "__main__":
    main()
