"""Pictures of flows: as text, as a Mermaid flowchart, and as SVG."""

from __future__ import annotations

from typing import Final

from flowfabric_worker._flows.drawing import Drawing, DrawnEdge, DrawnNode, drawing_of
from flowfabric_worker._flows.svg import COLOURS, draw_svg
from flowfabric_worker.engine.types.states import PublicState

__all__ = ["draw", "drawing_of"]

# The most parents of a node that a picture as text names.
_MOST_PARENTS: Final = 6
_ESCAPED: Final = str.maketrans({'"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;", "&": "#amp;", "`": "#96;"})


def draw(drawing: Drawing, form: str) -> str:
    """Return a picture of a flow.

    Raises:
        ValueError: there is no such form.
    """
    forms = {"text": _text, "mermaid": _mermaid, "svg": draw_svg}
    if form not in forms:
        raise ValueError(f"A picture is drawn as {', '.join(map(repr, forms))}, not as {form!r}.")
    return forms[form](drawing)


def _text(drawing: Drawing) -> str:
    """Draw a line for each node, indented by its layer, with the nodes that it depends on."""
    parents = drawing.parents()
    depths = {node.key: depth for depth, layer in enumerate(drawing.layers()) for node in layer}
    lines = [f"{drawing.name} ({len(drawing.nodes)} nodes)"]
    for node in sorted(drawing.nodes, key=lambda node: depths[node.key]):
        words = [f"{'  ' * depths[node.key]}- {node.key} ({node.task})"]
        if node.state is not None:
            words.append(f"[{node.state.value}]")
        if parents[node.key]:
            words.append(f"<- {_parents(parents[node.key])}")
        if node.join:
            words.append(f"({node.join})")
        lines.append(" ".join(words))
    return "\n".join(lines)


def _parents(edges: list[DrawnEdge]) -> str:
    named = [edge.upstream if edge.passes_data else f"after {edge.upstream}" for edge in edges]
    if len(named) > _MOST_PARENTS:
        named[_MOST_PARENTS - 1 :] = [f"{len(named) - _MOST_PARENTS + 1} more"]
    return ", ".join(named)


def _mermaid(drawing: Drawing) -> str:
    names = {node.key: f"n{number}" for number, node in enumerate(drawing.nodes)}
    lines = ["flowchart LR"]
    for node in drawing.nodes:
        state = "" if node.state is None else f":::{node.state.value}"
        lines.append(f'    {names[node.key]}["{_label(node)}"]{state}')
    for edge in drawing.edges:
        arrow = "-->" if edge.passes_data else "-.->"
        lines.append(f"    {names[edge.upstream]} {arrow} {names[edge.downstream]}")
    shown = {node.state for node in drawing.nodes} - {None}
    lines += [f"    classDef {state.value} fill:{COLOURS[state]}" for state in PublicState if state in shown]
    return "\n".join(lines)


def _label(node: DrawnNode) -> str:
    lines = [node.key, node.task, *([node.join] if node.join else [])]
    return "<br/>".join(line.translate(_ESCAPED) for line in lines)
