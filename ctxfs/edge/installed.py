"""Files that ctxfs puts into the system's directories: written whole, and known again by a mark.

Owns the mark, by which a file that somebody else wrote or changed the purpose of is never replaced or removed. It must not know what is in them.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

from ctxfs.errors import Denied, Exists, NotFound

#: in a comment, where the format has any
MARK = 'written by ctxfs'


def own_command() -> list[str]:
    """The words that run this ctxfs from anywhere, without a search path."""
    program = Path(sys.executable).with_name('ctxfs')
    return [str(program)] if os.access(program, os.X_OK) else [sys.executable, '-I', '-m', 'ctxfs']


def write(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Raises Exists where there is a file that is not ours, Denied or NotFound where it cannot be written."""
    if MARK not in text:
        text = f'# {MARK}\n{text}'
    check_ours(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, 'utf-8')
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise Denied(f'cannot write {path}: {e.strerror}') from e


def check_ours(path: Path) -> None:
    """Raises Exists where there is a file that is not ours."""
    if path.is_symlink() or path.exists() and MARK not in _text(path):
        raise Exists(f'{path} was not {MARK}; move it away first')


def remove(path: Path) -> None:
    """Raises NotFound where there is none, Exists where it is not ours, Denied where it cannot be removed."""
    check_ours(path)
    try:
        path.unlink()
    except FileNotFoundError:
        raise NotFound(f'{path}: nothing is installed there') from None
    except OSError as e:
        raise Denied(f'cannot remove {path}: {e.strerror}') from e


def _text(path: Path) -> str:
    try:
        return path.read_text('utf-8', 'replace')
    except OSError as e:
        raise Denied(f'cannot read {path}: {e.strerror}') from e
