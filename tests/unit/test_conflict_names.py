"""Names of conflict copies: readable, bounded, and never longer from copy to copy."""
from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from ctxfs.storage.keys import NAME_MAX, component_to_name, name_to_component
from ctxfs.sync.conflict_names import copy_name, host_part, original_name

AT = 1795831235.0       # 2026-11-28 02:00:35 UTC
MARK = '.conflict-laptop-20261128T020035Z'


def named(name: bytes, **options: object) -> bytes:
    return copy_name(name, **{'host': 'laptop', 'at_s': AT, 'is_free': lambda found: True, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(('name', 'copy'), [
    ('report.txt', f'report{MARK}.txt'), ('Makefile', f'Makefile{MARK}'), ('.bashrc', f'.bashrc{MARK}'), ('.config.json', f'.config{MARK}.json'),
    ('a.tar.gz', f'a{MARK}.tar.gz'), ('.tar.gz', f'.tar{MARK}.gz'), ('a.', f'a.{MARK}'), ('v1.0 final draft', f'v1.0 final draft{MARK}'),
    ('ünï ☃.txt', f'ünï ☃{MARK}.txt'), ('a.' + 'x' * 40, 'a.' + 'x' * 40 + MARK), (f'report{MARK}.txt', f'report{MARK}.txt')])
def test_a_copy_keeps_its_ending(name: str, copy: str) -> None:
    """Programs open it as what it is; a copy of a copy is named after the original."""
    assert named(name.encode()) == copy.encode() and original_name(copy.encode()) == original_name(name.encode())


def test_a_number_where_the_name_is_taken() -> None:
    """As often as needed, and the numbered one is recognised, too."""
    taken = [named(b'f.txt')]
    for number in (2, 3):
        taken.append(named(b'f.txt', is_free=lambda found: found not in taken))
        assert taken[-1] == f'f{MARK}-{number}.txt'.encode() and original_name(taken[-1]) == b'f.txt'


@hypothesis.given(st.binary(min_size=1, max_size=NAME_MAX).filter(lambda name: b'/' not in name and b'\0' not in name), st.integers(60, 900))
def test_every_copy_is_a_name_and_fits(name: bytes, room: int) -> None:
    """Of any name that a file can have; whole characters are kept where they are some; and the key has room where the store bounds it."""
    def fits(found: bytes) -> bool:
        return len(name_to_component(found).encode()) <= room

    copy = named(name, fits=fits)
    assert 0 < len(copy) <= NAME_MAX and b'/' not in copy and b'\0' not in copy
    again = named(copy, fits=fits)
    assert len(again) <= len(copy) and component_to_name(name_to_component(copy)) == copy
    try:
        name.decode()
    except UnicodeDecodeError:
        return
    copy.decode()


def test_a_long_name_is_cut_between_characters() -> None:
    """255 bytes of two-byte characters become 255 bytes at most, and no half character."""
    copy = named(('é' * 127).encode() + b'.txt'[:1])
    assert len(copy) <= NAME_MAX and copy.decode().startswith('é' * 50) and copy.endswith(MARK.encode())


@pytest.mark.parametrize(('host', 'part'), [('laptop', 'laptop'), ('build-7.example.com', 'build-7'), ('Büro PC', 'B-ro-PC'), ('_', ''),
                                            ('x' * 80, 'x' * 20), ('', '')])
def test_the_part_of_a_host(host: str, part: str) -> None:
    """Its first label, without anything that a name or a shell would trip over."""
    assert host_part(host) == part
