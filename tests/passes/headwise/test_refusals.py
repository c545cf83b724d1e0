"""What is refused, what is left alone, and what the user is told."""

import re
import warnings

import pytest
import torch
from torch import nn

import spectral_compile as spectral
from spectral_compile import HeadwiseRouter
from tests.passes.headwise.plain import Plain


def run(model: nn.Module, x: torch.Tensor, settings: HeadwiseRouter, **options: object) -> torch.Tensor:
    asked = {"recipe": "none", "codegen": "eager", "passes": [settings], **options}
    return torch.compile(model, backend="spectral", options=asked)(x)


def explained(model: nn.Module, x: torch.Tensor, settings: HeadwiseRouter, **options: object) -> list[str]:
    found = spectral.explain(model, x, options={"recipe": "none", "passes": [settings], **options})
    return [router.reason for graph in found.graphs for router in graph.routers]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"heads": 0}, "heads is 1 or more, not 0"),
        ({"heads": "three"}, "it is a number of heads, 1 or more, or 'attention'"),
        ({"experts_per_head": 0}, "experts_per_head is 1 or more, not 0"),
        ({"mode": "subtokens"}, "did you mean 'subtoken'"),
        ({"scale": 1}, "has no setting 'scale'"),
    ],
)
def test_settings(said: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadwiseRouter(**said)


def test_heads_that_do_not_divide_the_features() -> None:
    with pytest.raises(ValueError, match=r"'router': 32 features do not go into 5 heads; valid: 1, 2, 4, 8, 16, 32"):
        run(Plain("loop"), torch.randn(10, 32), HeadwiseRouter(heads=5))


def test_slices_that_grouped_products_cannot_read() -> None:
    layer, x = Plain("sorted").bfloat16(), torch.randn(10, 32).bfloat16()
    with pytest.raises(ValueError, match=r"multiples of 16 bytes, do not go into 8 heads; valid: 1, 2, 4$"):
        run(layer, x, HeadwiseRouter(heads=8))
    run(layer, x, HeadwiseRouter(heads=8, mode="vote"))  # whose dispatch is of all features


def test_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="layer 'router': experts_per_head is 1 to 4, not 5"):
        run(Plain("loop"), torch.randn(10, 32), HeadwiseRouter(heads=2, experts_per_head=5))


def test_heads_of_an_attention_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="layer 'router' follows no attention"):
        run(Plain("loop"), torch.randn(10, 32), HeadwiseRouter())


def test_another_function_is_warned_of_once_and_can_be_acknowledged() -> None:
    layer, x = Plain("loop"), torch.randn(10, 32)
    with pytest.warns(UserWarning, match="another function of the same parameters"):
        run(layer, x, HeadwiseRouter(heads=2))
    for quiet in (HeadwiseRouter(heads=2, acknowledge=True), HeadwiseRouter(heads=2, mode="mask")):
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            run(layer, x, quiet)


class Changed(Plain):
    """A layer with something in it that is not known."""

    def __init__(self, where: str) -> None:
        super().__init__("loop")
        self.where = where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.router(x).softmax(-1)
        if self.where == "gates":
            scores = scores.pow(2)
        weights, indices = scores.topk(2)
        y = self.loop(x, weights, indices)
        return y.cumprod(0) if self.where == "after" else y

    def loop(self, x, weights, indices):
        if self.where == "dispatch":
            weights = weights.cumprod(0)
        return super().loop(x, weights, indices)


@pytest.mark.parametrize(
    ("where", "reason"),
    [("gates", "a chain from logits to gates that is not known"), ("dispatch", "cumprod .* in the layer")],
)
def test_what_is_not_known_is_left_alone_and_listed(where: str, reason: str) -> None:
    layer, x = Changed(where), torch.randn(10, 32)
    torch.testing.assert_close(run(layer, x, HeadwiseRouter(heads=2)), layer(x))
    (found,) = explained(layer, x, HeadwiseRouter(heads=2, acknowledge=True))
    assert re.search(reason, found)


def test_a_router_under_an_autocast_of_its_own_is_left_alone() -> None:
    class Careful(Plain):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                scores = self.router(x.float()).softmax(-1)
            weights, indices = scores.topk(2)
            return self.loop(x, weights, indices)

    with torch.autocast("cpu", torch.bfloat16):
        (found,) = explained(Careful("loop"), torch.randn(10, 32), HeadwiseRouter(heads=2, acknowledge=True))
    assert found.startswith("autocast or no_grad begins or ends inside the layer")


def test_what_ranks_its_results_is_no_router() -> None:
    class Sampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 64)

        def forward(self, x):
            return (self.head(x) / 0.7).softmax(-1).topk(5)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert explained(Sampling(), torch.randn(10, 32), HeadwiseRouter(heads=2)) == []


def test_what_follows_the_layer_is_no_part_of_it() -> None:
    assert explained(Changed("after"), torch.randn(10, 32), HeadwiseRouter(heads=2, acknowledge=True)) == [""]


def test_excluded_and_disabled() -> None:
    layer, x = Plain("loop"), torch.randn(10, 32)
    torch.testing.assert_close(run(layer, x, HeadwiseRouter(heads=2), disable=["headwise_router"]), layer(x))

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = spectral.exclude(Plain("loop"))

        def forward(self, x):
            return self.inner(x)

    (found,) = explained(Around(), x, HeadwiseRouter(heads=2, acknowledge=True))
    assert "spectral_compile.exclude" in found


def test_counts_are_of_all_heads() -> None:
    """As torchtitan keeps them for a router's bias."""

    class Counting(Plain):
        def __init__(self) -> None:
            super().__init__("sorted")
            self.register_buffer("seen", torch.zeros(self.experts))

        def sorted(self, x, weights, indices):
            counts = torch.histc(indices.view(-1).float(), bins=self.experts, min=0, max=self.experts - 1)
            with torch.no_grad():
                self.seen.add_(counts)
            order = torch.argsort(indices.view(-1), stable=True)
            offsets = torch.cumsum(counts, 0, dtype=torch.int32)
            product = nn.functional.grouped_mm
            hidden = product(x[order // self.k], self.gate_up.transpose(-2, -1), offs=offsets)
            gate, up = hidden.chunk(2, -1)
            out = product(nn.functional.silu(gate) * up, self.down.transpose(-2, -1), offs=offsets)
            back = torch.argsort(order)
            return (out * weights.view(-1)[order].unsqueeze(-1))[back].view(-1, self.k, x.shape[-1]).sum(1)

    layer = Counting().bfloat16()
    layer.seen = layer.seen.float()
    run(layer, torch.randn(12, 32).bfloat16(), HeadwiseRouter(heads=4, acknowledge=True))
    assert layer.seen.sum() == 12 * 4 * 2  # each slice of each token, twice


def test_the_dump_shows_what_the_router_became(tmp_path) -> None:
    run(Plain("loop"), torch.randn(10, 32), HeadwiseRouter(heads=2, mode="vote"), dump=str(tmp_path))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (diff,) = folder.glob("dynamo_*headwise_router.diff")
    assert "topk" in diff.read_text()
    assert "1 of 1 routers split head by head" in (folder / "plan.txt").read_text()
