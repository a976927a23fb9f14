"""`ctxfs manual`: the manual page ctxfs(1), made from what the commands say of themselves.

Owns the page's sections and the markup of man(7). It must not know any single command: their words are those of --help.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

import click

from ctxfs import __version__
from ctxfs.edge.cli_common import Invocation, common_options, print_json

#: options that each command has, told once
COMMON = ('--store', '--state-dir', '--json', '--help')
_FILES = (('~/.config/ctxfs/config.toml, /etc/ctxfs/config.toml', 'Defaults of options, and mounts that have a name ([mounts.NAME]).'),
          ('~/.local/state/ctxfs/', 'What this host must not lose: the journal and changes that are not uploaded yet. --state-dir is another place.'),
          ('~/.cache/ctxfs/', 'The block cache; may be removed while nothing is mounted.'),
          ('/sbin/mount.fuse.ctxfs', 'What mount(8) runs, once ctxfs fstab install has put it there.'))
_ENVIRONMENT = (('CTXFS_STORE', 'The store, where --store does not say.'),
                ('AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE',
                 'Credentials of an S3 store, as the AWS tools have them; else ~/.aws/.'),
                ('XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_CACHE_HOME, XDG_DATA_HOME, XDG_RUNTIME_DIR', 'Where the files above are.'))
_STATUSES = (('0', 'Done.'), ('1', 'Failed; one line on stderr says why, and what to do.'), ('2', 'Wrong usage.'), ('130', 'Interrupted.'))


@click.command()
@common_options
def manual(invocation: Invocation) -> int:
    """Print the manual page ctxfs(1), for man -l - and for packages."""
    from ctxfs.edge.cli import cli  # it imports this module when the command is used
    text = ''.join(f'{line}\n' for line in page(cli))
    if invocation.as_json:
        print_json({'manual': text})
    else:
        sys.stdout.write(text)
    return 0


def page(root: click.Group) -> Iterator[str]:
    """The lines of the page."""
    yield f'.TH CTXFS 1 "" "ctxfs {__version__}" "User Commands"'
    yield from ('.SH NAME', r'ctxfs \- mount a directory of an object\-store bucket as a disk', '.SH SYNOPSIS')
    yield from ('.B ctxfs', r'.I COMMAND', '[\\fIARGUMENT\\fR...] [\\fIOPTION\\fR...]', '.SH DESCRIPTION')
    yield from _paragraphs(root.help or '')
    yield from ('.SH COMMANDS', *_commands(root, click.Context(root, info_name='ctxfs')))
    yield '.SH COMMON OPTIONS'
    command, parent = _any_command(root)
    with click.Context(command, info_name='', parent=parent) as context:
        yield from _options(command, context, _is_common)
    for title, entries in (('FILES', _FILES), ('ENVIRONMENT', _ENVIRONMENT), ('EXIT STATUS', _STATUSES)):
        yield f'.SH {title}'
        for name, text in entries:
            yield from ('.TP', f'.B {_escaped(name)}', _escaped(text))
    yield from ('.SH SEE ALSO', r'fusermount3(1), mount(8), fstab(5), systemctl(1)')


def _commands(group: click.Group, parent: click.Context) -> Iterator[str]:
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is None or command.hidden:
            continue
        with click.Context(command, info_name=name, parent=parent) as context:
            if isinstance(command, click.Group):
                yield from _commands(command, context)
            else:
                yield from _command(command, context)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    words = ' '.join(piece for piece in command.collect_usage_pieces(context) if piece != '[OPTIONS]')
    yield from ('.SS', f'\\fB{_escaped(context.command_path)}\\fR {_escaped(words)}'.rstrip())
    yield from _paragraphs(command.help or '')
    yield from _options(command, context, lambda names: not _is_common(names))


def _options(command: click.Command, context: click.Context, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and is_wanted(record[0]):
            yield from ('.TP', f'.B {_escaped(record[0])}', _escaped(record[1] or ''))


def _is_common(names: str) -> bool:
    return bool({name.partition(' ')[0] for name in names.split(', ')} & set(COMMON))


def _any_command(root: click.Group) -> tuple[click.Command, click.Context]:
    context = click.Context(root, info_name='ctxfs')
    found = root.get_command(context, 'status')
    assert found is not None
    return found, context


def _paragraphs(text: str) -> Iterator[str]:
    """Of a docstring: blank lines separate them, and one that begins with \\b keeps its lines."""
    for paragraph in re.split(r'\n\s*\n', text.strip()):
        lines = [line.strip() for line in paragraph.splitlines()]
        yield '.PP'
        if lines[0] == '\b':
            yield from ('.nf', *map(_escaped, paragraph.splitlines()[1:]), '.fi')
        else:
            yield _escaped(' '.join(lines))


def _escaped(text: str) -> str:
    text = text.replace('\\', '\\e').replace('-', '\\-').replace('…', '...')
    return re.sub(r"^([.'])", r'\\&\1', text)
