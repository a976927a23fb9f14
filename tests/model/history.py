"""What was written, by whom, and what its writer had seen: the judge of two hosts that share a context.

Owns the graph of versions and the verdict on what is left in the end. It must not know hosts, stores or file systems: it is told.

A version is a content; contents are unique. It may be gone in the end only where somebody who had seen it overwrote or removed it: then that
one's own version is asked for, and so on. So nothing acknowledged is silently overwritten. A conflict copy that is made although one of the
two versions is an ancestor of the other is a false one.
"""
from __future__ import annotations

from collections.abc import Container, Iterable, Mapping


class Violation(AssertionError):
    """A promise was broken."""


class History:
    """`by`: who wrote a version. See the module docstring."""

    def __init__(self) -> None:
        self._parents: dict[bytes, set[bytes]] = {}
        self._by: dict[bytes, str] = {}
        self._ended: dict[bytes, str] = {}
        self._acknowledged: dict[bytes, str] = {}
        #: written by several hosts, or given more names: whoever met it may not have seen where it was
        self._elsewhere: set[bytes] = set()
        self._has_moves = False

    def write(self, version: bytes, *, by: str, over: bytes | None) -> None:
        """`over`: what the writer saw in its place, None where there was nothing."""
        if version in self._parents:
            self._elsewhere.add(version)
        self._parents.setdefault(version, set())
        self._by[version] = by
        if over is not None and over != version:
            self._parents[version].add(over)
            self._ended[over] = f'{by} wrote {short(version)} over it'

    def end(self, version: bytes | None, how: str) -> None:
        """Somebody who saw it did away with it."""
        if version is not None:
            self._ended[version] = how

    def put_over_member(self, data: bytes, member: bytes) -> None:
        """By the outside writer, who sees objects. Of a member that no listing showed alone since its commit nobody can say that he saw it: it may be
        kept."""
        self.write(data, by='outside', over=None)
        self.end(member, f'outside put {short(data)} over its member')

    def moved(self, *versions: bytes | None) -> None:
        """They have another name, or one more."""
        self._has_moves = True
        self._elsewhere.update(version for version in versions if version is not None)

    def acknowledge(self, version: bytes | None, why: str) -> None:
        if version is not None:
            self._acknowledged.setdefault(version, why)

    def knows(self, version: bytes) -> bool:
        return version in self._parents

    def check_known(self, version: bytes, where: str) -> None:
        """Raises Violation for what nobody ever wrote: a mixture, or a part."""
        if version not in self._parents:
            raise Violation(f'{where} holds {short(version)}, which nobody wrote')

    def check_present(self, present: Iterable[bytes]) -> None:
        """`present`: all that is left, in the bucket and on hosts that keep something for themselves."""
        left = set(present)
        lost = [f'{short(version)} (by {self._by[version]}; {why})' for version, why in self._acknowledged.items()
                if version not in left and version not in self._ended]
        if lost:
            raise Violation('lost: ' + ', '.join(lost) + '; left are ' + ', '.join(sorted(map(short, left))))

    def check_gone(self, left: Mapping[str, bytes], *, excused: Container[bytes] = ()) -> None:
        """`left`: contents by their names. What somebody overwrote or removed does not come back; but what is `excused`, because its host never
        heard that it had arrived. Nothing is said where names were given: what is moved here follows what is changed there."""
        if self._has_moves:
            return
        back = [f'{name}: {short(version)} ({self._ended[version]})' for name, version in left.items()
                if version in self._ended and version not in self._elsewhere and version and '.conflict-' not in name and version not in excused]
        if back:
            raise Violation('came back: ' + ', '.join(back))

    def is_ancestor(self, old: bytes, new: bytes) -> bool:
        """Whether the writer of `new`, or of something that it came from, had seen `old`."""
        found, todo = set(), [new]
        while todo:
            for parent in self._parents.get(todo.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    todo.append(parent)
        return old in found

    def why_false(self, ours: bytes, theirs: bytes) -> str:
        """Why a conflict between the two is none; '' where it is one."""
        if ours == theirs:
            return 'both are the same'
        if self._elsewhere & {ours, theirs}:
            return ''
        if self.is_ancestor(theirs, ours):
            return 'ours was written by somebody who had seen theirs'
        return 'theirs was written by somebody who had seen ours' if self.is_ancestor(ours, theirs) else ''


def short(version: bytes) -> str:
    text = version.decode('ascii', 'backslashreplace')
    return repr(text if len(text) <= 24 else f'{text[:12]}…{text[-8:]}')
