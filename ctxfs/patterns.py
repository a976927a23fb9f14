"""Regular expressions of a policy: RE2's, because a policy may come from the bucket and is matched against every name.

Owns what a pattern may be and how one that may not is refused (the one importer of re2). It must not know policies or paths.

RE2 takes time that is linear in the text, whatever the pattern; Python's own `re` takes 2^n for `(a+)+$`. The price is that look-arounds and
back-references are not known, and that \\d, \\w, \\s and \\b mean ASCII. A pattern matches from the start of a text on, not necessarily to its end.
"""
from __future__ import annotations

import re

#: characters of one pattern
MAX_LENGTH = 1000
#: instructions of one compiled pattern, and of all patterns of a policy: what a match costs at worst, some 5 ns each and byte
MAX_SIZE, MAX_TOTAL_SIZE = 2_000, 20_000
#: bytes for one pattern and the states that matching it makes
_MEMORY = 1 << 20

#: what RE2 says, what is meant, and what to do
_HINTS = (
    (r'invalid perl operator: \(\?<?[=!]', 'look-arounds are not possible; write what is to be left out into excludePaths'),
    (r'invalid perl operator: \(\?P?$', 'back-references, conditions and flags like (?x) are not possible; write it out'),
    (r'invalid perl operator: \(\?[>(]', 'atomic groups and conditions are not possible; write a plain group (?:…)'),
    (r'invalid perl operator', 'RE2 does not know this kind of group; write a plain group (?:…)'),
    (r'invalid escape sequence: \\[1-9]', 'back-references are not possible; write it out'),
    (r'invalid escape sequence: \\Z', r'write \z for the end of the path'),
    (r'invalid repetition size', 'at most 1000 repetitions are possible, those of groups inside each other multiplied'),
    (r'bad repetition operator: .\+', 'possessive repetitions are not possible; leave the second + out'),
    (r'pattern too large', f'the most is {MAX_SIZE} instructions of RE2; make it simpler'))


class PatternError(ValueError):
    """A text that is no pattern; the message says why, and what to do."""


class Pattern:
    """A compiled pattern. Raises PatternError."""

    __slots__ = ('_match', 'size')

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise PatternError(f'{len(text)} characters are too many; the most is {MAX_LENGTH}')
        import re2  # here: it takes as long as half of a command, and few policies have patterns
        options = re2.Options()
        options.max_mem, options.log_errors, options.never_capture = _MEMORY, False, True
        try:
            compiled = re2.compile(_utf8(text), options)
        except re2.error as error:
            raise PatternError(_explain(_text_of(error))) from None
        if compiled.programsize > MAX_SIZE:
            raise PatternError(_explain(f'pattern too large ({compiled.programsize} instructions)'))
        self.size: int = compiled.programsize
        self._match = compiled.match

    def matches(self, text: str) -> bool:
        """Whether the text begins with what the pattern describes."""
        return self._match(_utf8(text)) is not None


def _utf8(text: str) -> bytes:
    return text.encode('utf-8', 'surrogatepass')


def _text_of(error: Exception) -> str:
    found = error.args[0] if error.args else ''
    return found.decode('utf-8', 'replace') if isinstance(found, bytes) else str(found)


def _explain(problem: str) -> str:
    for pattern, hint in _HINTS:
        if re.match(pattern, problem):
            return f'{problem}: {hint}'
    return problem + '; put \\ before a character that stands for itself'
