"""Pictures of flows: text, Mermaid and SVG."""

from __future__ import annotations

import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flowfabric_worker import Flow, Worker

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def flow() -> Flow:
    worker = Worker("shop", "memory://")

    @worker.task
    def fetch(source: str) -> int:
        return len(source)

    @worker.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    with worker.flow('night & <"day">') as flow:
        numbers = [fetch.node(source) for source in "abcdefgh"]
        audit = fetch.options(key='audit "#1"').node("x")
        total.options(need=2, others="cancel", after=audit).node(numbers)
    return flow


def test_text_names_each_node_behind_its_parents(flow: Flow) -> None:
    assert flow.picture().splitlines() == [
        'night & <"day"> (10 nodes)',
        *(f"- fetch{number} (shop.fetch)" for number in ("", *(f"-{each}" for each in range(2, 9)))),
        '- audit "#1" (shop.fetch)',
        "  - total (shop.total) <- fetch, fetch-2, fetch-3, fetch-4, fetch-5, 4 more (2 of 9, cancel the rest)",
    ]


def test_mermaid_escapes_labels_and_dots_edges_without_data(flow: Flow) -> None:
    lines = flow.picture("mermaid").splitlines()

    assert lines[0] == "flowchart LR"
    assert lines[9] == '    n8["audit #quot;#35;1#quot;<br/>shop.fetch"]'
    assert lines[10] == '    n9["total<br/>shop.total<br/>2 of 9, cancel the rest"]'
    assert [line for line in lines if ".->" in line] == ["    n8 -.-> n9"]
    assert len([line for line in lines if "-->" in line]) == 8


def test_svg_without_graphviz_has_a_box_for_each_node(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    picture = ElementTree.fromstring(flow.picture("svg"))
    boxes = picture.findall(f"{SVG}rect")
    columns = sorted({float(box.get("x", "")) for box in boxes})

    assert len(boxes) == 10
    assert len(columns) == 2
    assert len(picture.findall(f"{SVG}path")) == 9
    assert picture.findtext(f"{SVG}title") == 'night & <"day">'
    places = [(box.get("x"), box.get("y")) for box in boxes]
    assert len(set(places)) == 10
    assert all(
        float(box.get("y", "")) + float(box.get("height", "")) <= float(picture.get("height", "")) for box in boxes
    )


def test_svg_is_laid_out_by_graphviz_where_it_is_installed(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dot = tmp_path / "dot"
    dot.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/options\n/bin/cat > {tmp_path}/source\necho "<svg/>"\n')
    dot.chmod(dot.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert flow.picture("svg") == "<svg/>\n"
    assert (tmp_path / "options").read_text().split() == ["-Tsvg"]
    source = (tmp_path / "source").read_text()
    assert source.startswith('digraph "night & <\\"day\\">" {')
    assert "n8 -> n9 [style=dashed]" in source


def test_an_unknown_form_of_picture_is_refused(flow: Flow) -> None:
    with pytest.raises(ValueError, match="'text', 'mermaid', 'svg', not as 'png'"):
        flow.picture("png")  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("form", ["text", "mermaid", "svg"])
def test_a_flow_without_nodes_can_be_drawn(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert Worker("shop", "memory://").flow("empty").picture(form)  # type: ignore[arg-type]  # one of them
