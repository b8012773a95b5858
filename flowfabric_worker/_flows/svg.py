"""Pictures of flows as SVG: laid out by graphviz where its `dot` is installed, otherwise in layers by this module."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from flowfabric_worker._flows.drawing import Drawing, DrawnNode
from flowfabric_worker.engine.types.states import PublicState

COLOURS: Final = {
    PublicState.WAITING: "#e3e8ef",
    PublicState.DELAYED: "#e3e8ef",
    PublicState.RATE_LIMITED: "#ffe3a3",
    PublicState.WAITING_CHILDREN: "#f5f7fa",
    PublicState.ACTIVE: "#a8d1ff",
    PublicState.SUSPENDED: "#d9c8ff",
    PublicState.COMPLETED: "#b4e5bb",
    PublicState.FAILED: "#ffb3ab",
    PublicState.CANCELLED: "#d3d3d3",
    PublicState.EXPIRED: "#ffcf99",
    PublicState.SKIPPED: "#eeeeee",
}
_NO_STATE: Final = "#ffffff"

# The sizes of boxes and gaps, in pixels.
_CHARACTER: Final = 7.5
_LINE: Final = 16
_PADDING: Final = 10
_GAP: Final = 60
_ROW_GAP: Final = 16
_DOT_SECONDS: Final = 60


def draw_svg(drawing: Drawing) -> str:
    """Return a picture of a flow as SVG."""
    dot = shutil.which("dot")
    if dot is None:
        return _layered(drawing)
    done = subprocess.run(
        [dot, "-Tsvg"], input=dot_source(drawing), capture_output=True, text=True, timeout=_DOT_SECONDS, check=True
    )
    return done.stdout


def dot_source(drawing: Drawing) -> str:
    """Return a flow in the language of graphviz."""
    names = {node.key: f"n{number}" for number, node in enumerate(drawing.nodes)}
    lines = [
        f"digraph {_dot_text(drawing.name)} {{",
        '  rankdir=LR; node [shape=box style="rounded,filled" fontname="sans-serif" fontsize=12]',
    ]
    for node in drawing.nodes:
        label = _dot_text("\n".join(_lines(node)))
        lines.append(f'  {names[node.key]} [label={label} fillcolor="{_colour(node)}"]')
    for edge in drawing.edges:
        style = "" if edge.passes_data else " [style=dashed]"
        lines.append(f"  {names[edge.upstream]} -> {names[edge.downstream]}{style}")
    return "\n".join([*lines, "}"])


def _dot_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _lines(node: DrawnNode) -> list[str]:
    return [node.key, node.task, *([node.join] if node.join else [])]


def _colour(node: DrawnNode) -> str:
    return _NO_STATE if node.state is None else COLOURS[node.state]


def _layered(drawing: Drawing) -> str:
    """Draw each layer as a column, in the middle of the height."""
    layers = drawing.layers()
    tall = max((len(_lines(node)) for node in drawing.nodes), default=1) * _LINE + _PADDING
    height = max(map(len, layers), default=0) * (tall + _ROW_GAP) + _ROW_GAP
    boxes: dict[str, tuple[float, float, float]] = {}
    left = float(_ROW_GAP)
    for layer in layers:
        width = max(len(line) for node in layer for line in _lines(node)) * _CHARACTER + 2 * _PADDING
        top = (height - len(layer) * (tall + _ROW_GAP) + _ROW_GAP) / 2
        for row, node in enumerate(layer):
            boxes[node.key] = left, top + row * (tall + _ROW_GAP), width
        left += width + _GAP
    width = left - _GAP + _ROW_GAP if layers else 2.0 * _ROW_GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            'font-family="sans-serif" font-size="12">',
            f"<title>{escape(drawing.name)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
            *_edges(drawing, boxes, tall),
            *(line for node in drawing.nodes for line in _box(node, boxes[node.key], tall)),
            "</svg>",
        ]
    )


def _edges(drawing: Drawing, boxes: dict[str, tuple[float, float, float]], tall: float) -> Iterator[str]:
    for edge in drawing.edges:
        left, top, width = boxes[edge.upstream]
        x, y = left + width, top + tall / 2
        to_x, to_y = boxes[edge.downstream][0], boxes[edge.downstream][1] + tall / 2
        middle = (x + to_x) / 2
        dashes = "" if edge.passes_data else ' stroke-dasharray="4 3"'
        yield (
            f'<path d="M{x:.0f} {y:.0f}C{middle:.0f} {y:.0f} {middle:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}" '
            f'fill="none" stroke="#555"{dashes} marker-end="url(#tip)"/>'
        )


def _box(node: DrawnNode, box: tuple[float, float, float], tall: float) -> Iterator[str]:
    left, top, width = box
    hint = quoteattr(node.state.value if node.state else node.key)
    yield (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{tall:.0f}" rx="6" '
        f'fill="{_colour(node)}" stroke="#555" aria-label={hint}/>'
    )
    for row, line in enumerate(_lines(node), start=1):
        weight = ' font-weight="bold"' if row == 1 else ""
        yield f'<text x="{left + _PADDING:.0f}" y="{top + row * _LINE:.0f}"{weight}>{escape(line)}</text>'
