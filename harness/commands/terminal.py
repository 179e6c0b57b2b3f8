"""What commands say: to a reader on a terminal, to a program as JSON; and the status they end with."""

import json
from typing import Any

import click

FAILED, USAGE = 1, 2


def print_json(value: dict[str, Any]) -> None:
    """Prints one object on stdout, whatever facts it holds."""
    from edgewatt.results.plain import plain

    click.echo(json.dumps(plain(value), indent=1, allow_nan=False))


def say(text: str) -> None:
    """Prints the command's answer, on stdout."""
    click.echo(printable(text))


def complain(text: str) -> None:
    """Prints what is not the answer, on stderr."""
    click.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Foreign text (a device's label, a file's name) fit for a terminal: control characters are escaped."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """An error's text on one line, whatever it quotes."""
    return printable(text).replace("\n", "\\n")
