"""The comparison as one drawing: a row for each work, a mark for each side, on logarithmic scales; less is always better.

Owns the drawing (plain SVG, no library) and what is drawn of a row: the time of a side as a multiple of its basis's, or in seconds. Rows of
which nobody but ctxfs has a figure, and which are counts, are for the table. It must not know how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from bench.report import caption, number
from bench.rows import BOTO, CTXFS, LABELS, LOCAL, RIVALS

Result = Mapping[str, Any]

WIDTH, LEFT, RIGHT = 960, 410, 60
#: where the titles of rows begin and end; ctxfs's own figure stands between them and the marks
MARGIN, TITLE_END = 30, 330
ROW, PANEL_HEAD, PANEL_FOOT, TOP = 25, 44, 30, 54
INK, FAINT, GRID = '#24292f', '#6e7781', '#e4e8ec'
#: told apart by shape as well as by colour (the colours of Okabe and Ito, which most colour-blind people can tell apart)
COLOURS = {CTXFS: '#0072b2', 'rclone': '#e69f00', 's3fs': '#cc79a7', 'juicefs': '#009e73'}
#: as long as a line of the caption may be, in characters
CAPTION_WIDTH = 150
TITLES = {'first-ls': '100,000 files, 20 ms: first mount until `ls`', 'first-find': '… until `find` has printed all attributes',
          'again-ls': '… next mount until `ls`', 'million-ls': '1,000,000 files: first mount until `ls`',
          'unpack-up': 'unpack 2,450 files, all in the bucket', 'unpack-up-20ms': 'the same, 20 ms', 'cold-read': 'cold sequential read of 1 GiB',
          'flush-large': 'flush of 1 GiB', 'create': 'create, write 100 B, close', 'git': 'git clone, status, commit; 3,000 files',
          'random-read': '4 KiB random reads, warm (fio)', 'random-write': '4 KiB random writes, warm (fio)'}


class Panel(NamedTuple):
    title: str
    unit: str
    takes: Callable[[Result], bool]
    #: drawn through all rows: where the basis is
    line: float | None


PANELS = (
    Panel('Beside the local disk: how many times as long it takes', '×', lambda row: row['basis'] == LOCAL, 1.0),
    Panel('Seconds until it is done', ' s', lambda row: row['unit'] == 's', None),
    Panel('Beside boto3 alone: how many times as long it takes', '×', lambda row: row['basis'] == BOTO, 1.0),
)


def as_time(row: Result, value: float) -> float:
    """A ratio of rates turned over: less is better on every scale."""
    return 1 / value if row['direction'] == '≥' and value else value


def draw(found: Mapping[str, Any]) -> str:
    """An SVG document of what report.document() made."""
    panels = [(panel, [row for row in found['results'] if panel.takes(row) and row['sides']]) for panel in PANELS]
    panels = [(panel, rows) for panel, rows in panels if rows]
    sides = [side for side in (CTXFS, *RIVALS) if any(side in row['sides'] for _, rows in panels for row in rows)]
    parts, top = [*_legend(sides)], TOP
    for panel, rows in panels:
        parts += _panel(panel, rows, top)
        top += PANEL_HEAD + ROW * len(rows) + PANEL_FOOT
    lines = _wrapped(caption(found), CAPTION_WIDTH)
    parts += [_text(MARGIN, top + 22 + 16 * at, line, size=11.5, fill=FAINT) for at, line in enumerate(lines)]
    height = top + 26 + 16 * len(lines)
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">')
    title = '<title>How long work takes on ctxfs, on other mounts of a bucket, and on the local disk</title>'
    return '\n'.join([head, title, f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>', *parts, '</svg>', ''])


def _legend(sides: Sequence[str]) -> Iterator[str]:
    at = LEFT
    for side in sides:
        yield _mark(side, at, 28)
        yield _text(at + 12, 32, LABELS.get(side, side), weight=600 if side == CTXFS else 400)
        at += 48 + 8 * len(side)
    yield _goal(at + 10, 28)
    yield _text(at + 18, 32, 'goal of ctxfs', fill=FAINT)


def _panel(panel: Panel, rows: Sequence[Result], top: int) -> Iterator[str]:
    values = [as_time(row, found['value']) for row in rows for found in row['sides'].values()]
    values += [as_time(row, row['goal']) for row in rows] + ([panel.line] if panel.line else [])
    place = _scale([value for value in values if 0 < value < math.inf])
    bottom = top + PANEL_HEAD + ROW * len(rows)
    yield _text(MARGIN, top + 22, panel.title, size=14, weight=600)
    for tick in place.ticks:
        x = place(tick)
        is_basis = tick == panel.line
        yield f'<line x1="{x:.1f}" y1="{top + PANEL_HEAD - 6}" x2="{x:.1f}" y2="{bottom}" stroke="{FAINT if is_basis else GRID}"/>'
        yield _text(x, bottom + 16, f'{tick:,g}{panel.unit}', size=11.5, fill=INK if is_basis else FAINT, anchor='middle')
    for at, row in enumerate(rows):
        yield from _row(row, place, top + PANEL_HEAD + ROW * at + ROW // 2, panel.unit)


def _row(row: Result, place: _Scale, y: int, unit: str) -> Iterator[str]:
    yield _text(TITLE_END, y + 4, _plain(TITLES.get(row['name']) or row['title']), anchor='end', size=12.5)
    found = {side: as_time(row, figures['value']) for side, figures in row['sides'].items()}
    spots = {side: place(value) for side, value in found.items()}
    if len(spots) > 1:
        yield f'<line x1="{min(spots.values()):.1f}" y1="{y}" x2="{max(spots.values()):.1f}" y2="{y}" stroke="#c9d1d9" stroke-width="2"/>'
    yield _goal(place(as_time(row, row['goal'])), y)
    for side in (*RIVALS[::-1], CTXFS):
        if side in spots:
            said = f'{LABELS.get(side, side)}: {number(found[side])}{unit}'
            yield _mark(side, spots[side], y, said)
    if CTXFS in found:
        yield _text(LEFT - 18, y + 4, f'{number(found[CTXFS])}{unit}', size=12.5, fill=COLOURS[CTXFS], anchor='end', weight=600)
    last = max(spots, key=lambda side: spots[side])
    if last != CTXFS:
        yield _text(spots[last] + 11, y + 4, f'{number(found[last])}{unit}', size=11, fill=FAINT)


class _Scale:
    """From a value to x, logarithmic, from a tick below all values to one above."""

    def __init__(self, ticks: Sequence[float]) -> None:
        self.ticks = ticks
        self._low, self._high = math.log(ticks[0]), math.log(ticks[-1])

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self._low) / (self._high - self._low) if value > 0 else 0.0
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)


def _scale(values: Sequence[float]) -> _Scale:
    """With ticks at 1, 3, 10, 30 …, or at 1, 10, 100 … where those would be many."""
    below, above = min(values) / 1.25, max(values) * 1.15
    all_ = [step * 10.0 ** power for power in range(math.floor(math.log10(below)) - 1, math.ceil(math.log10(above)) + 1) for step in (1, 3)]
    first = max(at for at, tick in enumerate(all_) if tick <= below)
    last = min(at for at, tick in enumerate(all_) if tick >= above)
    return _Scale([round(tick, 9) for tick in all_[first:max(last, first + 1) + 1]])


def _mark(side: str, x: float, y: float, said: str = '') -> str:
    shapes = {
        CTXFS: f'<circle cx="{x:.1f}" cy="{y}" r="6.5" %s/>',
        'rclone': f'<path d="M{x:.1f} {y - 6.5}l6.5 6.5l-6.5 6.5l-6.5 -6.5z" %s/>',
        's3fs': f'<rect x="{x - 5:.1f}" y="{y - 5}" width="10" height="10" %s/>',
        'juicefs': f'<path d="M{x:.1f} {y - 6.5}l6.5 11.5h-13z" %s/>',
    }
    mark = shapes[side] % f'fill="{COLOURS[side]}" stroke="#ffffff" stroke-width="1.2"'
    return f'<g>{f"<title>{escape(said)}</title>" if said else ""}{mark}</g>'


def _goal(x: float, y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y - 9}" x2="{x:.1f}" y2="{y + 9}" stroke="{INK}" stroke-width="1.6" stroke-dasharray="3 2"/>'


def _text(x: float, y: float, text: str, *, size: float = 13, fill: str = INK, anchor: str = 'start', weight: int = 400) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _plain(text: str) -> str:
    return text.replace('`', '')


def _wrapped(text: str, width: int) -> list[str]:
    """At the marks between its parts."""
    lines = ['']
    for part in text.split('; '):
        joined = f'{lines[-1]}; {part}' if lines[-1] else part
        lines[-1:] = [joined] if len(joined) <= width else [lines[-1], part]
    return lines
