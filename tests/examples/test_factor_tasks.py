"""Tasks of compositions: what each sequence and each family says of itself."""

import pytest
import torch

from examples.factor_tasks import FAMILIES, SEQUENCES, output_projection, readout, tasks_of
from examples.moe import GivenAttention, MoEConfig

CONFIG = MoEConfig()
SIZES = {"factors": 4, "classes": 8, "seed": 3}


def sequence(name, family="aligned"):
    return tasks_of(name, family, tasks=4, dim=32, **SIZES)


@pytest.mark.parametrize("name", SEQUENCES)
def test_tests_hold_every_composition_of_the_task(name):
    tasks = sequence(name)
    for task in range(len(tasks)):
        test = tasks.test(task, 324, torch.Generator())
        assert len(test.labels) == 324
        own = {tuple(c) for c in tasks.compositions[task].tolist()}
        assert {tuple(c) for c in test.values.tolist()} == own
        drawn = tasks.train(task, 50, torch.Generator()).values
        assert {tuple(c) for c in drawn.tolist()} <= own
    counts = {"separate": 324, "apart": 324, "values": 81, "recombined": 12}
    assert len(own) == counts[name]
    if name == "values":
        assert [len(column.unique()) for column in tasks.compositions[0].T] == [3] * 4


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_rule(name, family):
    tasks = sequence(name, family)
    for task in (0, 2):
        batch = tasks.test(task, 324, torch.Generator())
        for values, label in zip(batch.values[:20].tolist(), batch.labels, strict=False):
            asked = [task] if name in ("separate", "apart") else range(4)
            scores = torch.zeros(8)
            for factor in asked:
                following = values[(factor + 1) % 4]
                own = tasks.scores[factor, values[factor]]
                scores += own[following] if family == "interacting" else own
            assert scores.argmax() == label


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_brings_each_factor_to_its_place(family):
    tasks = sequence("values", family)
    batch = tasks.train(0, 16, torch.Generator())
    output = output_projection(family, 4, 32, seed=3)
    found = GivenAttention(CONFIG, output)(batch.tokens) @ output  # back to the heads' coordinates
    clean = tasks.embedding[torch.arange(4), batch.values].flatten(1)
    assert (found - clean).std() < 0.25  # the noise of the examples, and little of other kinds
    torch.testing.assert_close(output @ output.T, torch.eye(32), rtol=0, atol=1e-5)


def test_where_families_put_the_slices():
    aligned, permuted, mixed = (output_projection(name, 4, 32, seed=3) for name in ("aligned", "permuted", "mixed"))
    assert torch.equal(aligned, torch.eye(32))
    blocks = permuted.unflatten(0, (4, 8)).unflatten(2, (4, 8)).abs().sum((1, 3))
    assert torch.equal(blocks.sort(-1).values[:, -1], torch.full((4,), 8.0))
    assert (blocks > 0).sum() == 4
    assert not blocks.diagonal().any()
    assert (mixed.unflatten(0, (4, 8)).unflatten(2, (4, 8)).abs().sum((1, 3)) > 1).all()


def test_readouts_read_the_same_wherever_the_slices_are():
    settings = {"questions": 4, "classes": 8, "factors": 4, "seed": 3}
    heads = torch.randn(5, 32)
    for name in SEQUENCES:
        logits = []
        for family in ("aligned", "permuted", "mixed"):
            output = output_projection(family, 4, 32, seed=3)
            logits.append(heads @ output.T @ readout(name, output, **settings).T)
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=1e-4)
    separate = readout("separate", torch.eye(32), **settings).unflatten(0, (4, 8)).unflatten(2, (4, 8))
    assert (separate.abs().sum((1, 3)) > 0).equal(torch.eye(4).bool())


def test_bad_input():
    with pytest.raises(ValueError, match="unknown family 'diagonal'; there are aligned"):
        sequence("values", "diagonal")
    with pytest.raises(ValueError, match="unknown sequence 'sum'"):
        sequence("sum")
