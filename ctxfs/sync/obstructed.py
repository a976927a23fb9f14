"""Keys whose object could not be shown, or whose row may be wrong, although nothing new is going to happen there.

Owns the bounded set of them. It must not know why: a local file has the name and may go, an upload ended in between, a delete was refused
because the object is a newer one.
"""
from __future__ import annotations

#: of very many, the next whole listing takes care
MOST = 1000


class Obstructed:
    """See the module docstring."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self._keys)

    def has(self, key: str) -> bool:
        return key in self._keys

    def add(self, *keys: str) -> None:
        """They are to be looked at again."""
        self._keys.update(keys[:MOST - len(self._keys)])

    def take(self) -> set[str]:
        """All of them; they are the caller's now, to be looked at or added again."""
        taken, self._keys = self._keys, set()
        return taken
