"""A terminal that is drawn again in place.

Owns the escape sequences (ECMA-48, and xterm's alternate screen) and that the terminal is as before when it is left, however that
happens; what was shown last stays readable. It must not know what is shown.
"""
from __future__ import annotations

import shutil
import sys
from types import TracebackType

_ENTER, _LEAVE = '\x1b[?1049h\x1b[?25l', '\x1b[?25h\x1b[?1049l'
_HOME, _REST_OF_LINE, _BELOW = '\x1b[H', '\x1b[K', '\x1b[J'


class Screen:
    """A context manager around `show`."""

    def __init__(self) -> None:
        self._shown: list[str] = []

    def __enter__(self) -> Screen:
        sys.stdout.write(_ENTER)
        return self

    def show(self, lines: list[str]) -> None:
        """These lines and nothing else, cut to the terminal's size as it is now."""
        self._shown = lines
        size = shutil.get_terminal_size()
        shown = [line[:size.columns] for line in lines[:size.lines - 1]]
        if len(lines) > len(shown):
            shown[-1] = f'… {len(lines) - len(shown) + 1} more lines'[:size.columns]
        sys.stdout.write(_HOME + ''.join(f'{line}{_REST_OF_LINE}\n' for line in shown) + _BELOW)
        sys.stdout.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stdout.write(_LEAVE + ''.join(f'{line}\n' for line in self._shown))
        sys.stdout.flush()
