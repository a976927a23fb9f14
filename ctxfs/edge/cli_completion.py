"""`ctxfs completion`: what a shell must know to complete words of `ctxfs`, and what it is told when it asks.

Owns how values are completed: contexts by what is mounted here and what the config file names, so that no store is asked. It must not know any
single command: a value is known by how the command calls it in its usage.
"""
from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem, get_completion_class

from ctxfs.edge.cli_common import Invocation, common_options, print_json
from ctxfs.errors import CtxfsError

SHELLS = ('bash', 'zsh', 'fish')


@click.command()
@click.argument('shell', type=click.Choice(SHELLS))
@common_options
def completion(invocation: Invocation, shell: str) -> int:
    """Print the completions for a shell.

    \b
    bash   eval "$(ctxfs completion bash)" in ~/.bashrc
    zsh    eval "$(ctxfs completion zsh)" in ~/.zshrc, after compinit
    fish   ctxfs completion fish > ~/.config/fish/completions/ctxfs.fish
    """
    text = script(shell)
    if invocation.as_json:
        print_json({'shell': shell, 'script': text})
    else:
        sys.stdout.write(text)
    return 0


def script(shell: str) -> str:
    """It asks `ctxfs` itself, by the variable. Not the shell's version, as click would: it may be made where the shell is not."""
    from ctxfs.edge.cli import COMPLETING, cli  # it imports this module when the command is used
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, 'ctxfs', COMPLETING)
    return made.source_template % made.source_vars()


class Context(click.ParamType):
    """A context's name or id, or the name of a mount of the config file."""
    name = 'context'

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            invocation = Invocation(None, None, False)
            mounts = invocation.mounts()
        except CtxfsError:
            return []
        found = {mount.record.context_name: mount.record.mountpoint for mount in mounts}
        found.update({name: named.mountpoint for name, named in invocation.configuration.mounts.items()})
        items = [CompletionItem(name, help=at) for name, at in sorted(found.items()) if name.startswith(incomplete)]
        return items or [CompletionItem(incomplete, type='file')]


class Place(click.ParamType):
    """A file or a directory of this host."""
    name = 'place'

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=self._kind)]


#: what usages call their values
_VALUES: tuple[tuple[str, click.ParamType], ...] = (
    ('CTX', Context()), ('NAME', Context()), ('[MOUNTPOINT]', Place('dir')), ('MOUNTPOINT', Context()),
    ('DIR', Place('dir')), ('FILE', Place('file')), ('LOCAL', Place('file')), ('PATH', Place('file')))


def with_values(command: click.Command) -> click.Command:
    """The command, whose values can be completed; its commands' too."""
    for parameter in command.params:
        word = (parameter.metavar or '') if isinstance(parameter.type, click.types.StringParamType) else ''
        kind = next((kind for name, kind in _VALUES if name in word), None)
        if kind is not None:
            parameter.type = kind
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        with_values(below)
    return command
