"""docs/CLI.md, made from the commands themselves: `posthouse docs > docs/CLI.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from cluster.cli.app import app
from cluster.cli.exits import MEANING

INTRO = """\
# The command line

*Made by `posthouse docs` from the commands' own help; change it there.*

`posthouse` and `python -m cluster.cli` are the same. Texts are UTF-8 in any locale, and what is sent and received is
taken byte for byte. Messages about what went wrong go to standard error: what, where, and what to do.

## Exit status

| status | meaning |
|---|---|
"""


def reference() -> str:
    """The whole document."""
    statuses = "".join(f"| {status.value} | {text} |\n" for status, text in MEANING.items())
    return INTRO + statuses + "".join(_sections())


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, with its full name, groups before what is in them."""
    context = click.Context(group, info_name=name)
    for key in group.list_commands(context):
        command = group.get_command(context, key)
        if command is not None and not command.hidden:
            yield f"{name} {key}", command
            if isinstance(command, click.Group):
                yield from commands(command, f"{name} {key}")


def _sections() -> Iterator[str]:
    for full_name, command in commands(app, "posthouse"):
        depth = "##" if full_name.count(" ") == 1 else "###"
        yield f"\n{depth} {full_name}\n\n"
        if not isinstance(command, click.Group):
            pieces = " ".join(command.collect_usage_pieces(click.Context(command, info_name=full_name)))
            yield f"```\n{full_name} {pieces}\n```\n\n"
        yield _help_text(command) + "\n"
        yield from _options(command, full_name)


def _help_text(command: click.Command) -> str:
    """Paragraphs as click means them: those after a \\b keep their lines."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            paragraphs.append("```\n" + paragraph.removeprefix("\b\n") + "\n```")
        else:
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _options(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    records = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    rows = ["| `{}` | {} |\n".format(*(cell.replace("|", "\\|") for cell in row)) for row in filter(None, records)]
    if rows:
        yield "\n| option | |\n|---|---|\n" + "".join(rows)


@click.command(hidden=True)
def docs() -> None:
    """Print docs/CLI.md."""
    click.echo(reference(), nl=False)


if __name__ == "__main__":
    docs()
