"""How a command's errors are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from nashtune.errors import NashtuneError


@contextmanager
def told() -> Iterator[None]:
    """Errors that are the user's to act on are one message and exit code 1; Ctrl-C says how to go on."""
    try:
        yield
    except NashtuneError as error:
        typer.secho(f"nashtune: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("nashtune: stopped; the same command goes on from here", fg="yellow", err=True)
        raise typer.Exit(130) from None
