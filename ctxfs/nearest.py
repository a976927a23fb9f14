"""What a misspelt word was meant to be, as error messages end. Owns the words for it; it must not know what is named."""
from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` where a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' (did you mean {close[0]}?)' if close else ''
