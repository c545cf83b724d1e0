"""Measures of routes against cases by hand and against counting in plain Python."""

import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.moe import effective_compositions, route_entropy, route_load, token_routes


def test_effective_compositions_by_hand():
    routes = torch.tensor([7, 7, 7, 7, 2, 2])
    factors = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 0], [5, 5], [5, 5]])
    found = effective_compositions(routes, factors)
    assert found.routes.tolist() == [2, 7]
    assert found.per_route.tolist() == pytest.approx([1, 1 / (2 / 16 + 1 / 4)])
    assert found.load.tolist() == pytest.approx([2 / 6, 4 / 6])
    assert found.mean.item() == pytest.approx(1 / 3 + 2 / 3 * 8 / 3)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2), st.integers(-2, 2)), min_size=1, max_size=40))
def test_effective_compositions_by_counting(rows):
    table = defaultdict(Counter)
    for route, *factors in rows:
        table[route][tuple(factors)] += 1
    expected = {route: 1 / sum((n / seen.total()) ** 2 for n in seen.values()) for route, seen in sorted(table.items())}
    data = torch.tensor(rows)
    found = effective_compositions(data[:, 0], data[:, 1:])
    assert found.routes.tolist() == list(expected)
    assert found.per_route.tolist() == pytest.approx(list(expected.values()))
    mean = sum(n * table[route].total() / len(rows) for route, n in expected.items())
    assert found.mean.item() == pytest.approx(mean)
    assert all(1 <= n <= len(table[route]) + 1e-9 for route, n in expected.items())


def test_compositions_may_be_ids():
    routes, factors = torch.randint(0, 4, (200,)), torch.randint(0, 3, (200, 2))
    ids = 3 * factors[:, 0] + factors[:, 1]
    assert effective_compositions(routes, ids).mean == effective_compositions(routes, factors).mean


@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_token_routes_are_equal_where_the_sets_are(heads, k, data):
    choice = st.lists(st.permutations(range(4)).map(lambda order: order[:k]), min_size=heads, max_size=heads)
    indices = torch.tensor(data.draw(st.lists(choice, min_size=1, max_size=12)))
    found = token_routes(indices if heads > 1 else indices[:, 0]).tolist()
    sets = [tuple(frozenset(head) for head in token) for token in indices.tolist()]
    for a, first in enumerate(sets):
        for b, second in enumerate(sets):
            assert (found[a] == found[b]) == (first == second)
    assert max(found) + 1 == len(set(found))


def test_load_and_entropy():
    load = route_load(torch.tensor([[0, 2], [2, 3], [2, 0], [2, 0]]), 5)
    assert load.tolist() == [3 / 8, 0, 4 / 8, 1 / 8, 0]
    entropy = -(3 / 8 * math.log(3 / 8) + 4 / 8 * math.log(4 / 8) + 1 / 8 * math.log(1 / 8))
    assert route_entropy(load).item() == pytest.approx(entropy)
    both = route_entropy(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]]))
    assert both.tolist() == pytest.approx([math.log(4), 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_compositions(torch.ones(3), torch.ones(3).long()), "routes: integers"),
        (lambda: effective_compositions(torch.ones(3).long(), torch.ones(3)), "compositions: integers"),
        (lambda: effective_compositions(torch.ones(3, 2).long(), torch.ones(3).long()), "one id an observation"),
        (lambda: effective_compositions(torch.ones(0).long(), torch.ones(0).long()), "N > 0"),
        (lambda: effective_compositions(torch.ones(3).long(), torch.ones(4).long()), "N = 3"),
        (lambda: effective_compositions(torch.ones(3).long(), torch.ones(3, 0).long()), "N = 3"),
        (lambda: token_routes(torch.ones(3).long()), r"\[T, k\]"),
        (lambda: token_routes(torch.tensor([[0, 1], [2, 2]])), "chose one expert twice"),
        (lambda: token_routes(torch.ones(3, 2)), "indices: integers"),
        (lambda: route_load(torch.tensor([0, 5]), 5), "not within the 5 routes"),
        (lambda: route_load(torch.tensor([-1, 0]), 5), "not within the 5 routes"),
        (lambda: route_load(torch.ones(0).long(), 5), "no token was routed"),
        (lambda: route_load(torch.tensor([True]), 5), "integers are wanted"),
        (lambda: route_entropy(torch.tensor([0.5, 0.4])), "sum to 1"),
        (lambda: route_entropy(torch.tensor([1.5, -0.5])), "none negative"),
        (lambda: route_entropy(torch.tensor([torch.nan, 1.0])), "none negative"),
        (lambda: route_entropy(torch.tensor(1.0)), "shares"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
