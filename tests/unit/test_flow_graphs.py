"""Building the graph of a flow: nodes, keys, joins, and what is refused while it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest

from flowfabric_worker import Node, ResultError, ValidationError, Worker, chain, chord, group
from flowfabric_worker.engine.types.edges import AllEnded, AllOf, AnyOf, OnSatisfied, Quorum


@attrs.frozen
class Quote:
    """The offer of a provider."""

    price: float


worker = Worker("shop", "memory://")


@worker.task
def fetch(source: str) -> int:
    """Return a number."""
    return len(source)


@worker.task
def quote(number: int = 0, margin: float = 0.0) -> Quote:
    """Return a class with fields."""
    return Quote(number + margin)


@worker.task
def total(numbers: list[int]) -> int:
    """Take a list."""
    return sum(numbers)


@worker.task
def add(*numbers: int) -> int:
    """Take any number of arguments."""
    return sum(numbers)


@worker.task
def report(numbers: Sequence[int | ResultError]) -> str:
    """Take results and errors."""
    return str(len(numbers))


@worker.task
def anything(value):  # type: ignore[no-untyped-def]
    """Take and return plain values."""
    return value


@worker.task
def show(price: float, text: str = "") -> str:
    """Take one result."""
    return f"{price}{text}"


def parents_of(node: Node[Any]) -> list[tuple[str, str]]:
    return [(parent.key, ",".join(paths)) for parent, paths in node._parents.items()]


def test_arguments_of_nodes_become_edges_in_their_order() -> None:
    with worker.flow("nightly") as flow:
        numbers = [fetch.node(source) for source in ("a", "bb")]
        best = total.node(numbers)
        audit = anything.options(key="audit").node(1)
        show.options(after=[audit, best]).node(best, text="!")

    assert list(flow.nodes) == ["fetch", "fetch-2", "total", "audit", "show"]
    assert parents_of(flow.nodes["total"]) == [("fetch", "numbers[0]"), ("fetch-2", "numbers[1]")]
    assert parents_of(flow.nodes["show"]) == [("total", "price"), ("audit", "")]
    assert flow.nodes["total"]._creation.payload == b'[[],{"numbers":null},{"numbers":[null,null]}]'


def test_a_node_passed_twice_is_one_edge_with_two_paths() -> None:
    with worker.flow("twice") as flow:
        one = fetch.node("a")
        add.node(one, 5, one)

    assert parents_of(flow.nodes["add"]) == [("fetch", "0,2")]


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, AllOf()),
        ({"others": "cancel"}, AllOf(OnSatisfied.CANCEL_REMAINING)),
        ({"need": 1}, AnyOf(OnSatisfied.LET_RUN)),
        ({"need": 2, "others": "cancel"}, Quorum(2, OnSatisfied.CANCEL_REMAINING)),
        ({"need": "ended"}, AllEnded()),
    ],
)
def test_need_and_others_become_the_policy_of_the_node(options: dict[str, Any], policy: object) -> None:
    with worker.flow("joined"):
        node = report.options(**options).node([fetch.node("a"), fetch.node("b")])

    assert node._policy == policy


REFUSED: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "wrong type",
        lambda: show.node(1.0, fetch.node("a")),
        TypeError,
        "'text' of shop.show is annotated str.*returns int",
    ),
    ("a class for a number", lambda: show.node(quote.node()), TypeError, "annotated float.*returns Quote"),
    ("one for a list", lambda: total.node(fetch.node("a")), TypeError, "list.int.*returns int"),
    ("a list for one", lambda: show.node([fetch.node("a")]), TypeError, "annotated float, takes no list"),
    ("a mixed list", lambda: total.node([fetch.node("a"), 3]), TypeError, "mixes nodes with a int"),
    ("a dict of nodes", lambda: anything.node({"a": fetch.node("a")}), TypeError, "is a dict with nodes"),
    ("too many arguments", lambda: show.node(fetch.node("a"), "x", 3), TypeError, r"show\(\) takes"),
    (
        "a key twice",
        lambda: [fetch.options(key="a").node("x") for _ in "ab"],
        ValidationError,
        "has a node with the key",
    ),
    ("more than there are", lambda: total.options(need=2).node([fetch.node("a")]), ValidationError, "only 1 parents"),
    ("none", lambda: total.options(need=0).node([fetch.node("a")]), ValidationError, "need= is"),
    ("a word", lambda: total.options(need="most").node([]), ValidationError, "need= is"),
    ("others", lambda: total.options(others="stop").node([]), ValidationError, "others must be"),
    ("after a value", lambda: total.options(after=[3]).node([]), TypeError, "after= mixes nodes"),
    ("a list of successes", lambda: show.options(need=1).node(1.0, fetch.node("a")), TypeError, "annotated str"),
    (
        "one that may be missing",
        lambda: show.options(need=1, after=[fetch.node("b")]).node(fetch.node("a")),
        TypeError,
        "may run without the result of 'fetch-2'",
    ),
    (
        "no place for an error",
        lambda: total.options(need="ended").node([fetch.node("a")]),
        TypeError,
        r"annotate int \| ResultError",
    ),
    ("a connection", lambda: fetch.options(connection=object()).node("a"), TypeError, "takes no connection"),
]


@pytest.mark.parametrize(("build", "error", "text"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_what_cannot_work_is_refused_while_it_is_built(
    build: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with worker.flow("refused") as flow, pytest.raises(error, match=text):
        build()

    assert all(key.startswith(("fetch", "quote", "a")) for key in flow.nodes)


def test_nodes_depend_on_nodes_of_their_own_flow() -> None:
    with worker.flow("other"):
        foreign = fetch.node("a")
    with worker.flow("own") as flow:
        with pytest.raises(ValidationError, match="'fetch' belongs to the flow 'other'"):
            add.node(foreign)
        with pytest.raises(ValidationError, match="belongs to the flow 'other'"):
            fetch.options(after=foreign).node("b")
        with pytest.raises(ValidationError, match="belongs to the flow 'other'"):
            flow.returns([foreign])

    assert not flow.nodes


def test_a_node_needs_a_flow_and_a_submission_no_join() -> None:
    with pytest.raises(RuntimeError, match=r"inside `with worker\.flow"):
        fetch.node("a")
    with pytest.raises(TypeError, match=r"submit\(\) takes no need=: that is an option of nodes"):
        fetch.options(need=1).submit("a")
    with pytest.raises(TypeError, match=r"submit_many\(\) takes no others="):
        fetch.options(others="cancel").submit_many([("a",)])


def test_results_fit_where_a_type_checker_would_let_them() -> None:
    with worker.flow("fitting") as flow:
        number = fetch.node("a")
        show.node(number)
        quote.node(number, margin=number)
        anything.node([[number], quote.node()])
        show.node(anything.node(1))
        report.node([number, anything.node(2)])
        add.node(number, number)
        flow.returns([number, [number]])

    assert len(flow.nodes) == 10


def test_compositions_pass_results_and_nest() -> None:
    @worker.task(name="pair")
    def pair(numbers: list[int]) -> int:
        return len(numbers)

    @worker.task(name="nested")
    def nested(numbers: list[list[int]]) -> int:
        return len(numbers)

    with worker.flow("composed"):
        both = chord(group(fetch, fetch), group(chain(pair, quote), pair)).node("a")
        deep = chain(fetch.node("b"), group(group(add, add), group([add])), nested, partial(show.node, text="!")).node()

    assert [each.key for each in both] == ["quote", "pair-2"]
    assert parents_of(both[1]) == [("fetch", "numbers[0]"), ("fetch-2", "numbers[1]")]
    (inner,) = deep._parents
    assert parents_of(inner) == [("add", "numbers[0][0]"), ("add-2", "numbers[0][1]"), ("add-3", "numbers[1][0]")]


def test_an_empty_group_in_a_chain_passes_an_empty_list_in_order() -> None:
    with worker.flow("empty"):
        node = chain(partial(fetch.node, "a"), group([]), total, show).node()

    (middle,) = node._parents
    assert (middle.key, middle._creation.payload) == ("total", b"[[[]]]")
    assert parents_of(middle) == [("fetch", "")]


@pytest.mark.parametrize(
    ("compose", "text"),
    [
        (lambda: chain(), "at least one part"),
        (lambda: group(3), "is a task, a composition"),
        (lambda: chain(fetch, fetch.node("x")).node("a"), "has its arguments already"),
        (lambda: chain(lambda: 5).node(), "mixes nodes with a int"),
    ],
)
def test_a_composition_of_something_else_is_refused(compose: Callable[[], Any], text: str) -> None:
    with worker.flow("refused"), pytest.raises(TypeError, match=text):
        compose()


def test_a_flow_submits_its_graph_under_an_id_that_follows_from_its_key() -> None:
    def built(key: str | None) -> Any:
        with worker.flow("keyed", key=key, tags={"day": "monday"}) as flow:
            total.node([fetch.node("a")])
        return flow._submitted()

    first, again, other = built("monday"), built("monday"), built("tuesday")

    assert first == again
    assert first.flow_id != other.flow_id
    assert built(None).flow_id != built(None).flow_id
    assert [(edge.upstream, edge.downstream, edge.data_passing_ref) for edge in first.edges] == [
        ("fetch", "total", "numbers[0]")
    ]
    assert (first.kind, first.tags) == ("keyed", {"day": "monday"})
    assert [node.execution.headers for node in first.nodes] == [
        {"flowfabric-node": "fetch"},
        {"flowfabric-node": "total"},
    ]
