"""The command `ctxfs`: finds the subcommand, runs it, and turns every ending into one line and an exit status.

Owns the list of subcommands and the exit statuses: 0 done, 1 failed, 2 wrong usage, 130 interrupted. It must not know what a command
does: each lives in a module of its own that is imported only when it is used, because scripts call ctxfs often and wait for it.
"""
from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from ctxfs import __version__
from ctxfs.edge import daemon_process
from ctxfs.edge.command import COMPLETING
from ctxfs.errors import CtxfsError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: name → (module, attribute, one line for --help)
COMMANDS = {
    'mount': ('ctxfs.edge.cli_mount', 'mount', 'Mount a context as a disk.'),
    'umount': ('ctxfs.edge.cli_mount', 'umount', 'Unmount, and wait until every change is in the bucket.'),
    'wait': ('ctxfs.edge.cli_wait', 'wait', 'Wait until nothing is pending.'),
    'sync': ('ctxfs.edge.cli_wait', 'sync', 'Upload what is pending now, or take over remote changes.'),
    'status': ('ctxfs.edge.cli_status', 'status', 'Show mounts, what is pending and what failed.'),
    'watch': ('ctxfs.edge.cli_watch', 'watch', 'Print what happens as it happens.'),
    'explain': ('ctxfs.edge.cli_explain', 'explain', 'Say whether a path is synced, by which rule, and its state.'),
    'conflicts': ('ctxfs.edge.cli_conflicts', 'conflicts', 'List or settle files that two hosts changed.'),
    'pause': ('ctxfs.edge.cli_pause', 'pause', 'Hold back what begins by itself.'),
    'resume': ('ctxfs.edge.cli_pause', 'resume', 'End a pause.'),
    'context': ('ctxfs.edge.cli_context', 'context', 'Create, list, show, rename, copy, clear and delete contexts.'),
    'files': ('ctxfs.edge.cli_files', 'files', 'A context\'s files without a mount: list, get, put, remove, URLs.'),
    'cache': ('ctxfs.edge.cli_cache', 'cache', 'Show, fill or empty the local cache of mounts.'),
    'doctor': ('ctxfs.edge.cli_doctor', 'doctor', 'Look for what keeps ctxfs from working.'),
    'metrics': ('ctxfs.edge.cli_metrics', 'metrics', 'Print counters of running mounts for Prometheus.'),
    'log-level': ('ctxfs.edge.cli_log_level', 'log_level', 'Set how much running mounts log.'),
    'service': ('ctxfs.edge.cli_service', 'service', 'Run named mounts as services of systemd.'),
    'fstab': ('ctxfs.edge.cli_fstab', 'fstab', 'Let mount -t fuse.ctxfs and /etc/fstab work.'),
    'policy': ('ctxfs.edge.cli_policy', 'policy', 'Check, show and store sync policies.'),
    'completion': ('ctxfs.edge.cli_completion', 'completion', 'Print completions for bash, zsh or fish.'),
    'manual': ('ctxfs.edge.cli_manual', 'manual', 'Print the manual page ctxfs(1).'),
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        if COMPLETING not in os.environ:
            return command
        from ctxfs.edge.cli_completion import with_values
        return with_values(command)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Of commands without importing all of them."""
        from click.shell_completion import CompletionItem
        if incomplete.startswith('-'):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, (_, _, text) in COMMANDS.items() if name.startswith(incomplete)]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith('-'):
            from ctxfs.config import nearest
            raise click.UsageError(f'no command {args[0]}{nearest(args[0], COMMANDS)}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section('Commands'):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={'help_option_names': ['-h', '--help']})
@click.version_option(__version__, prog_name='ctxfs')
def cli() -> None:
    """Mount a context (a directory of an object-store bucket) as a real disk.

    CTX is a context's id or name, or, where it is mounted, its mount point.
    """


def run(args: list[str]) -> int:
    """What command.run does, once the daemon of a mount has begun. Ends one that is not needed."""
    try:
        return _run(args)
    finally:
        daemon_process.abandon()


def _run(args: list[str]) -> int:
    try:
        status = cli.main(args=args, prog_name='ctxfs', standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        return 2
    except click.ClickException as e:
        help_at = f'; see {e.ctx.command_path} --help' if isinstance(e, click.UsageError) and e.ctx else ''
        return fail(e.format_message().rstrip('.') + help_at, e.exit_code)
    except UsageError as e:
        return fail(str(e), 2)
    except CtxfsError as e:
        return fail(str(e), getattr(e, 'exit_status', 1))
    except (KeyboardInterrupt, click.Abort):
        return fail('interrupted', 130)
    except BrokenPipeError:
        # `ctxfs context list | head -1`: no word about it, as click does; and the interpreter must not try to flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def fail(message: str, status: int) -> int:
    print(f'ctxfs: {" ".join(message.split())}', file=sys.stderr)
    return status
