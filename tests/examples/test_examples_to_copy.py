"""The examples to copy from, in few steps: the loss falls, products are in four bits, checkpoints stay as they are."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from examples import accumulation_and_checkpointing, huggingface_trainer, lightning_module, plain_loop
from examples.stand_ins import CONTEXT, Windows, tiny_llama
from spectral_compile._torch import without_caches
from spectral_compile.pipeline import observe
from spectral_compile.plan import Plan

FEW = ["--steps", "8"]
EAGER = [*FEW, "--options", '{"codegen": "eager"}']
IN_FOUR_BITS = 2 * 7 * 3  # blocks, linears, products; the rest are attention's and the head's


@pytest.fixture
def plans() -> Iterator[list[Plan]]:
    """The plans of all graphs compiled during the test, those of `explain` included."""
    seen: list[Plan] = []
    stop = observe(lambda stage, graph, plan: seen.append(plan) if stage == "joint" else None)
    yield seen
    stop()


@pytest.fixture
def llamas(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that an example makes."""
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(tiny_llama())
        return made[-1]

    for example in (huggingface_trainer, lightning_module):
        monkeypatch.setattr(example, "tiny_llama", make)
    return made


def assert_learnt(before: float, after: float) -> None:
    """From about the uniform guess to a nat below it."""
    assert before == pytest.approx(math.log(256), abs=0.2)
    assert after < before - 1


def assert_trained_in_four_bits(plans: list[Plan], compiles: int = 1) -> None:
    """What `explain` said before is what the compiles of the training did."""
    explained, *trained = plans
    assert len(trained) == compiles
    assert all(len(plan.quantized) == len(explained.quantized) == IN_FOUR_BITS for plan in trained)


def test_plain_loop(plans: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    losses = plain_loop.main(EAGER)
    assert_learnt(losses["before"], losses["after"])
    assert losses["validation"] < losses["before"] - 1  # of the checkpoint, without the backend
    assert_trained_in_four_bits(plans)
    assert f"{IN_FOUR_BITS} of 49 matrix products in four bits" in capsys.readouterr().out


@pytest.mark.slow
def test_plain_loop_through_inductor(plans: list[Plan]) -> None:
    with without_caches():  # on a warm cache no pass runs, no plan is made
        losses = plain_loop.main(FEW)
    assert_learnt(losses["before"], losses["after"])
    assert_trained_in_four_bits(plans)


@pytest.mark.parametrize("example", [huggingface_trainer, lightning_module], ids=lambda example: example.__name__)
def test_trainers_of_libraries(
    example: object, plans: list[Plan], llamas: list[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    losses = example.main(EAGER)  # type: ignore[attr-defined]
    assert_learnt(losses["before"], losses["after"])
    assert_trained_in_four_bits(plans)
    assert {row.dtype for row in plans[-1].quantized} == {"bfloat16"}  # the library's own mixed precision
    (trained,) = llamas
    assert trained.state_dict().keys() == tiny_llama().state_dict().keys()
    assert f"{IN_FOUR_BITS} of 49 matrix products in four bits" in capsys.readouterr().out


def test_accumulation_and_checkpointing(plans: list[Plan]) -> None:
    found = accumulation_and_checkpointing.main([*EAGER, "--compare"])
    for name in ("in parts", "at once"):
        assert_learnt(found[f"{name}, before"], found[f"{name}, after"])
    # The same weights and sequences: only rounding differs, each part having scales of its own.
    assert found["in parts, before"] == pytest.approx(found["at once, before"], rel=1e-3)
    assert found["in parts, after"] == pytest.approx(found["at once, after"], rel=2e-2)
    # A quarter of the sequences, and of each block its input alone.
    assert found["in parts, saved"] < found["at once, saved"] / 8
    assert_trained_in_four_bits(plans, compiles=2)


def test_accumulation_does_not_compare_unless_asked() -> None:
    found = accumulation_and_checkpointing.main(["--steps", "1", "--options", '{"codegen": "eager"}'])
    assert set(found) == {"in parts, before", "in parts, after", "in parts, saved"}


def test_parts_of_a_step_hold_the_sequences_of_the_step() -> None:
    whole, parts = (accumulation_and_checkpointing.parts_of_steps(number) for number in (1, 4))
    for _ in range(2):
        tokens, targets = next(whole)
        of_parts = [next(parts) for _ in range(4)]
        assert torch.equal(torch.cat([part for part, _ in of_parts]), tokens)
        assert torch.equal(torch.cat([part for _, part in of_parts]), targets)


def test_windows_cover_the_text_once_and_end() -> None:
    text = torch.arange(3 * CONTEXT + 5).to(torch.uint8)
    windows = Windows(text)
    assert len(windows) == 3
    assert torch.equal(torch.cat([window["input_ids"] for window in windows]), text[: 3 * CONTEXT].long())
    assert all(torch.equal(window["labels"], window["input_ids"]) for window in windows)
