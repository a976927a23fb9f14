"""Names to keys and back: a bijection, and the verdict on keys that no file system holds."""
from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.errors import InvalidArgument, NameTooLong
from ctxfs.storage.keys import KEY_MAX, NAME_MAX, Unmountable, component_to_name, key_to_path, mapped_prefix, name_to_component, path_to_key

TEXT = st.text(st.characters(exclude_categories=('Cs',)) | st.sampled_from('\u201b8AFé'))
NAMES = st.lists(st.binary(max_size=3) | st.sampled_from([b'\xe2\x80\x9b', b'\xe2', b'\x80', b'8A', b'FF', b'\xff']), max_size=12).map(b''.join)


@pytest.mark.parametrize(('name', 'component'), [
    (b'plain', 'plain'), ('é'.encode(), 'é'), (b'\xff', '\u201bFF'), (b'a\xe9b', 'a\u201bE9b'),
    (b'\xed\xa0\x80', '\u201bED\u201bA0\u201b80'),
    ('it\u201bs'.encode(), 'it\u201bs'),
    ('\u201bFF'.encode(), '\u201b\u201bFF'), ('\u201bff'.encode(), '\u201bff'),
    ('\u201b'.encode() + b'\xff', '\u201b\u201b\u201bFF'), ('\u201b41'.encode(), '\u201b41'),
    (b'a\x01\n', 'a\x01\n'), (b'\xc0\xaf', '\u201bC0\u201bAF'),
])
def test_a_name_is_spelled_as_expected(name: bytes, component: str) -> None:
    """Only bytes that are no UTF-8, and what would be mistaken for them, are escaped."""
    assert name_to_component(name) == component
    assert component_to_name(component) == name


@pytest.mark.parametrize('length', range(8))
def test_short_texts_map_to_names_one_to_one(length: int) -> None:
    """Exhaustive over an alphabet of everything the escape is made of: no two texts share a name, each comes back."""
    seen = set()
    for letters in itertools.product('\u201b8AaéF' if length < 7 else '\u201b8A', repeat=length):
        text = ''.join(letters)
        name = component_to_name(text)
        assert name_to_component(name) == text
        assert name not in seen
        seen.add(name)


@pytest.mark.parametrize('length', range(6))
def test_short_names_come_back(length: int) -> None:
    """Exhaustive over the bytes of U+201B, digits, and bytes that are no UTF-8."""
    for parts in itertools.product([b'\xe2\x80\x9b', b'\xe2', b'\x80', b'\x9b', b'8', b'A', b'\xff'], repeat=length):
        name = b''.join(parts)
        assert component_to_name(name_to_component(name)) == name


def test_every_byte_alone_comes_back() -> None:
    """256 names."""
    assert [component_to_name(name_to_component(bytes([byte]))) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


@given(NAMES)
def test_any_name_comes_back(name: bytes) -> None:
    """And its text is text that UTF-8 can carry."""
    component = name_to_component(name)
    component.encode('utf-8')
    assert component_to_name(component) == name


@given(TEXT)
@example('\u201b\u201b\u201b\u201bFF')
def test_any_text_comes_back(text: str) -> None:
    """A key keeps its spelling through the mount."""
    assert name_to_component(component_to_name(text)) == text


@given(st.lists(NAMES.filter(lambda name: name not in (b'', b'.', b'..') and b'/' not in name and b'\0' not in name), min_size=1, max_size=4),
       st.booleans())
def test_a_path_that_linux_allows_comes_back_from_its_key(path: list[bytes], is_dir: bool) -> None:
    """As a file or as a directory marker."""
    if path[0] == b'.ctxfs':
        path = [b'x', *path]
    assert key_to_path(path_to_key(path, is_dir=is_dir)) == tuple(path)


@pytest.mark.parametrize(('key', 'word'), [
    ('a//b', 'empty'), ('/a', 'empty'), ('a//', 'empty'), ('/', 'empty'), ('.', "'.'"), ('..', "'..'"), ('a/../b', "'..'"), ('../x', "'..'"),
    ('./a', "'.'"), ('a/./', "'.'"), ('a\0b', 'NUL'), ('n' * 256, '256'), ('é' * 128, '256'), ('.ctxfs', 'reserved'), ('.ctxfs/', 'reserved'),
    ('.ctxfs/index/1', 'reserved'), ('a/\udc80', 'Unicode'),
])
def test_a_key_that_no_file_system_holds_says_why(key: str, word: str) -> None:
    """One line for a person."""
    verdict = key_to_path(key)
    assert isinstance(verdict, Unmountable)
    assert word in verdict.reason
    assert '\n' not in verdict.reason


@pytest.mark.parametrize(('key', 'path'), [
    ('', ()), ('a', (b'a',)), ('a/b/', (b'a', b'b')), ('a/.ctxfs', (b'a', b'.ctxfs')), ('...', (b'...',)), ('\x01\n\x7f', (b'\x01\n\x7f',)),
    ('n' * NAME_MAX, (b'n' * NAME_MAX,)), ('\u201bFF' * NAME_MAX, (b'\xff' * NAME_MAX,)), (' ', (b' ',)), ('a\\b', (b'a\\b',)),
])
def test_a_key_that_a_file_system_holds_gives_its_names(key: str, path: tuple[bytes, ...]) -> None:
    """Control characters are legal; the length of a name counts in its own bytes."""
    assert key_to_path(key) == path


def test_a_path_too_long_for_a_key_is_refused() -> None:
    """1,023 bytes with the prefix, and not one more."""
    path = [b'n' * 255] * 3 + [b'n' * 250]
    assert len(path_to_key(path, prefix='p/')) == 1020
    assert len(path_to_key(path, prefix='12345')) == KEY_MAX
    with pytest.raises(NameTooLong):
        path_to_key(path, is_dir=True, prefix='12345')


def test_the_root_has_the_prefix_itself_as_marker() -> None:
    """Not a slash more."""
    assert path_to_key([], is_dir=True, prefix='contexts/x/') == 'contexts/x/'


@pytest.mark.parametrize('path, prefix', [
    ('', ''), ('/', ''), ('/home/wuying/x', 'home/wuying/x/'), ('a//b/', 'a/b/'), ('c:\\Users\\A B\\Downloads', 'c:/Users/A B/Downloads/'),
    ('/with\\backslash', 'with\\backslash/'),
])  # fmt: skip
def test_a_mapped_path_is_a_prefix_in_the_context(path: str, prefix: str) -> None:
    """Sessions of any system; a backslash separates only where the path is Windows'."""
    assert mapped_prefix(path) == prefix


@pytest.mark.parametrize('path', ['/a/../b', '.', '/.ctxfs/index', 'a/' + 'x' * 256])
def test_a_mapped_path_that_no_key_can_have_is_refused(path: str) -> None:
    """It would show nothing, or ctxfs's own objects."""
    with pytest.raises(InvalidArgument):
        mapped_prefix(path)
