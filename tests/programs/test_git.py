"""git with a repository whose work goes on, on the next host, where the last one left it."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.programs.home import Home

COMMITS = 40


def an_upstream(outside: Path, home: Home) -> Path:
    """A bare repository on the local disk: two branches that change the same line."""
    bare = outside / 'upstream.git'
    home.run('git', 'init', '-q', '--bare', bare, cwd=outside)
    stream = ['blob\nmark :1\ndata 6\nfirst\n\n']
    for branch, count in (('main', COMMITS), ('side', 3)):
        for n in range(count):
            text = f'{branch} {n}\n' * 50
            start = 'from refs/heads/main\n' if branch == 'side' and n == 0 else ''
            stream.append(f'commit refs/heads/{branch}\ncommitter T <t@localhost> {1_700_000_000 + n} +0000\ndata {len(branch)}\n{branch}\n'
                          f'{start}M 100644 inline src/f{n % 5}\ndata {len(text)}\n{text}\nM 100755 inline run.sh\ndata 10\n#!/bin/sh\n\n')
    # main goes on where side began, so that a rebase stops at a conflict
    stream.append('commit refs/heads/main\ncommitter T <t@localhost> 1800000000 +0000\ndata 4\nlast\nM 100644 inline src/f0\ndata 4\nmine\n')
    (outside / 'stream').write_text(''.join(stream))
    home.run('sh', '-c', f'git -C {bare} fast-import --quiet < {outside}/stream', cwd=outside)
    return bare


def test_git(home: Home, outside: Path, needs: Callable[..., None]) -> None:
    """clone, worktree, stash, gc, and a rebase that stops at a conflict; elsewhere it is continued, and pushed; fsck finds nothing."""
    needs('git')
    upstream = an_upstream(outside, home)
    home.run('git', 'clone', '-q', upstream, 'repo')
    repo = home.at / 'repo'

    def git(*words: str, cwd: Path = repo, status: int = 0) -> str:
        return home.run('git', *words, cwd=cwd, status=status)

    git('worktree', 'add', '-q', '-b', 'tree', '../tree', 'origin/side')
    (home.at / 'tree/new').write_text('in the worktree\n')
    git('add', 'new', cwd=home.at / 'tree')
    git('checkout', '-q', 'side')
    (repo / 'src/f4').write_text('stashed\n')
    git('stash', 'push', '-q')
    git('gc', '-q')
    git('rebase', '-q', 'main', status=1)
    assert 'UU src/f0' in git('status', '--porcelain')
    home.move()
    assert 'UU src/f0' in git('status', '--porcelain')
    git('fsck', '--strict', '--full')
    (repo / 'src/f0').write_text('both\n')
    git('add', 'src/f0')
    git('-c', 'core.editor=true', 'rebase', '--continue')
    git('stash', 'pop', '-q')
    assert git('status', '--porcelain') == ' M src/f4\n'
    git('commit', '-qam', 'popped')
    git('commit', '-qm', 'new', cwd=home.at / 'tree')
    git('push', '-q', 'origin', '+side', 'tree')
    git('clone', '-q', '--local', 'repo', 'linked', cwd=home.at)
    home.move()
    for where in ('repo', 'tree', 'linked'):
        git('fsck', '--strict', '--full', cwd=home.at / where)
        assert git('status', '--porcelain', cwd=home.at / where) == ''
    assert git('rev-list', '--count', 'side') == f'{COMMITS + 5}\n'
    assert git('rev-parse', 'side', 'tree') == git('rev-parse', 'side', 'tree', cwd=upstream)
    git('worktree', 'remove', '../tree')
    git('gc', '-q', '--prune=now', '--aggressive')
    git('fsck', '--strict', '--full')
