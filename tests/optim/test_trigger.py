"""The trigger against the same rule in plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.optim import Trigger, TriggerState, advance


def run(trigger, norms, step=advance):
    state, fired = TriggerState.new(), []
    for norm in norms:
        fires, state = step(trigger, state, torch.tensor(norm))
        fired.append(bool(fires))
    return fired, state


def by_hand(trigger, norms):
    """As methods.md has it."""
    average, steps, rest, fired = 0.0, 0, 0, []
    for norm in norms:
        if not abs(norm) < float("inf"):
            fired.append(False)
            continue
        fires = norm > trigger.threshold * average and steps >= trigger.warmup and rest == 0
        fired.append(fires)
        if fires:
            rest = trigger.cooldown
        else:
            rest = max(0, rest - 1)
            average = norm if steps == 0 else average + trigger.alpha * (norm - average)
        steps += 1
    return fired, average


NORMS = st.one_of(st.floats(0.5, 2), st.floats(0, 100), st.sampled_from([float("nan"), float("inf")]))


@given(norms=st.lists(NORMS, max_size=60), warmup=st.integers(0, 8), cooldown=st.integers(0, 5))
def test_it_is_the_rule(norms, warmup, cooldown):
    trigger = Trigger(warmup=warmup, cooldown=cooldown)
    norms = [torch.tensor(norm).item() for norm in norms]  # as fp32
    fired, state = run(trigger, norms)
    expected, average = by_hand(trigger, norms)
    assert fired == expected
    assert state.average.item() == pytest.approx(average, rel=1e-4, abs=1e-6)
    assert state.fired.item() == sum(expected)


def test_the_published_numbers():
    quiet = [1.0] * 50
    assert run(Trigger(), [*quiet[:-1], 3.0])[0][-1] is False  # step 49: warm-up
    assert run(Trigger(), [*quiet, 2.4])[0][-1] is False
    fired, state = run(Trigger(), [*quiet, 2.6, *[2.6] * 31])
    assert fired.index(True) == 50
    assert sum(fired) == 1  # 30 steps of rest, in which the average catches up
    assert run(Trigger(), [*quiet, 2.6])[1].average == 1  # not moved by what fired
    assert state.average > 2


def test_it_fires_again_after_the_cooldown():
    fired, _ = run(Trigger(alpha=1e-6), [*[1.0] * 50, *[3.0] * 70])
    assert [step for step, fires in enumerate(fired) if fires] == [50, 81, 112]


def test_nan_neither_fires_nor_counts():
    _, before = run(Trigger(warmup=1), [1.0, 1.0])
    for norm in (float("nan"), float("inf")):
        fires, after = advance(Trigger(warmup=1), before, torch.tensor(norm))
        assert not fires
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_compiles_once_and_a_checkpoint_goes_on(tmp_path):
    norms = [1.0] * 55 + [4.0, 1.0, 4.0]
    compiled = torch.compile(advance, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert run(Trigger(), norms, compiled)[0] == run(Trigger(), norms)[0]
    _, half = run(Trigger(), norms[:30])
    torch.save(tuple(half), tmp_path / "trigger.pt")
    state = TriggerState(*torch.load(tmp_path / "trigger.pt", weights_only=True))
    for norm in norms[30:]:
        _, state = advance(Trigger(), state, torch.tensor(norm))
    assert all(torch.equal(a, b) for a, b in zip(state, run(Trigger(), norms)[1], strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 1.0}, "'threshold'"), ({"alpha": 0.0}, "'alpha'"), ({"warmup": -1}, "'warmup'")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Trigger(**settings)
