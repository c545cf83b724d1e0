"""The picture of a graph: which band a node is in, and where it stands."""

import itertools
import random
import time
from typing import Any

import pytest

from spectral_compile.report.bands import Bands, part_of
from spectral_compile.report.layout import lay_out, spread


def node(name: str, layer: str = "", seq: int = -1, backward: bool = False, **other: Any) -> dict[str, Any]:
    return {"name": name, "layer": layer, "seq": seq, "backward": backward, "inputs": [], **other}


def test_a_part_of_the_model_ends_at_its_first_number() -> None:
    paths = {"model.layers.0.mlp.up_proj": "model.layers.0", "model.norm": "model.norm", "0": "0", "": ""}
    assert {path: part_of(path) for path in paths} == paths


def test_backward_nodes_are_in_the_band_of_their_forward_and_glue_goes_with_what_is_before() -> None:
    nodes = [
        node("weight", op="placeholder"),
        node("a", "layers.0.up", seq=1, inputs=["weight"]),
        node("relu", "layers", seq=2, inputs=["a"]),
        node("b", "layers.1.up", seq=3, inputs=["relu"]),
        node("loss", "", seq=4, inputs=["b"]),
        node("b_grad", "layers.1.up", seq=3, backward=True, inputs=["loss"]),
        node("relu_grad", "", seq=2, backward=True, inputs=["b_grad"]),
        node("unknown", "", seq=99, backward=True, inputs=["relu_grad"]),
    ]
    bands = Bands(nodes)
    assert bands.labels == ["layers.0", "layers.1"]
    assert bands.of(nodes) == [0, 0, 0, 1, 1, 1, 0, 0]


def test_every_node_stands_below_what_it_reads_and_backward_runs_up_beside_it() -> None:
    #         weight x  a        b       b'      a'
    inputs = [[], [], [0, 1], [2], [3], [4, 2]]
    layout = lay_out(inputs, [False] * 4 + [True] * 2, [0, 0, 0, 1, 1, 0])
    assert layout.row[2] > layout.row[0]
    assert layout.row[3] > layout.row[2]
    assert layout.row[5] < layout.row[4]  # backward goes up
    assert layout.x[4] > max(layout.x[:4])  # on the right
    assert [band for band, *_ in layout.bands] == [0, 1]
    assert all(first <= last for _, first, last in layout.bands)


def test_a_graph_of_one_part_runs_down() -> None:
    layout = lay_out([[], [0], [1]], [True] * 3, [1, 1, 0])
    assert layout.row == sorted(layout.row)


def test_a_weight_stands_just_above_its_reader() -> None:
    chain = [[], [0], [1], [2], [], [3, 4]]  # 4 is a weight that only the last node reads
    layout = lay_out(chain, [False] * 6, [0] * 6)
    assert layout.row[4] == layout.row[5] - 1


@pytest.mark.parametrize("wanted", [[0.0, 0.0, 0.0], [1.0, 5.0, 5.5], [0.0], [], [-3.0, -3.0, 4.0, 4.0]])
def test_spread_keeps_nodes_apart_and_near_where_they_want_to_be(wanted: list[float]) -> None:
    places = list(spread(wanted))
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(places))
    assert sum(places) == pytest.approx(sum(wanted))


def test_nodes_never_overlap_and_thousands_take_seconds() -> None:
    draw = random.Random(0)
    inputs = [sorted({draw.randrange(max(0, i - 40), i) for _ in range(2)}) if i > 50 else [] for i in range(6000)]
    begin = time.process_time()
    layout = lay_out(inputs, [i > 3000 for i in range(6000)], [min(i, 6000 - i) // 250 for i in range(6000)])
    assert time.process_time() - begin < 20  # about 1 s where nothing else runs
    places = sorted(zip(layout.row, layout.x, strict=True))
    assert all(row != other or b - a > 0.98 for (row, a), (other, b) in itertools.pairwise(places))
