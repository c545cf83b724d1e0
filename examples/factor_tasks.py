"""Tasks of compositions: an example has one value of each of several factors, a task is a set of compositions of them.

No answer changes from task to task, so one model can know them all, and what is lost of an earlier task is lost by
interference. Four sequences of tasks:

- separate: a task asks for one factor, the next task for another, each with a readout of its own, which reads only the
  slice in which the factor sits: what is trained for one task is as far from the others as it can be
- apart: as separate, but readouts read all features
- values: each task has 3 of 6 values of each factor, drawn anew, in all compositions: tasks bring new values
- recombined: each task has 12 compositions, drawn anew from all: tasks bring known values in new company

Families differ in where factors sit, and the last one in the rule:

- aligned: each factor sits in one head's slice of the router's input
- permuted: as aligned, with whole slices in another order: a control, which should differ from it by luck only
- mixed: slices are rotated into each other, as an output projection of attention is free to do
- interacting: as aligned, but answers depend on pairs of factors, of which no single slice knows
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

SEQUENCES = ("separate", "apart", "values", "recombined")
FAMILIES = ("aligned", "permuted", "mixed", "interacting")
VALUES, OWN = 6, 3  # of a factor; of them a task's own in the sequence `values`
DRAWN = {"separate": 324, "apart": 324, "recombined": 12}  # compositions of a task, of all 6^factors
NOISE = 0.2  # deviation of what is added to a value's features, whose own is 1


@dataclass(frozen=True)
class Batch:
    """tokens [N, factors + 1, dim], of which the last one asks; labels [N]; values [N, factors], the composition."""

    tokens: Tensor
    labels: Tensor
    values: Tensor


@dataclass(frozen=True)
class Tasks:
    """A sequence of tasks. embedding [factors, values, dim / factors], of which the first feature is 1: the kind.

    scores [factors, values, classes], or of each factor with the next one [factors, values, values, classes]: summed
    over what `asked` [tasks, factors] says, the largest is the answer. questions: each task's readout. compositions
    [tasks, M, factors]: each task's own.
    """

    embedding: Tensor
    scores: Tensor
    asked: Tensor
    questions: tuple[int, ...]
    compositions: Tensor

    def __len__(self) -> int:
        return len(self.compositions)

    def train(self, task: int, size: int, chance: torch.Generator) -> Batch:
        """Compositions drawn at random from the task's own."""
        own = self.compositions[task]
        return self._batch(own[torch.randint(len(own), (size,), generator=chance)], task, chance)

    def test(self, task: int, size: int, chance: torch.Generator) -> Batch:
        """Every composition of the task equally often, and in all as many as go into `size`, with fresh noise."""
        own = self.compositions[task]
        return self._batch(own.repeat(size // len(own), 1), task, chance)

    def _batch(self, values: Tensor, task: int, chance: torch.Generator) -> Batch:
        size, (factors, _, width) = len(values), self.embedding.shape
        each = torch.arange(factors)
        found = self.embedding[each, values]
        found[..., 1:] += NOISE * torch.randn(size, factors, width - 1, generator=chance)
        # A token has its factor's features in that head's slice and nothing elsewhere; the token that asks has none.
        tokens = torch.zeros(size, factors + 1, factors, width)
        tokens[:, each, each] = found
        return Batch(tokens.flatten(2), self._labels(values, self.asked[task]), values)

    def _labels(self, values: Tensor, asked: Tensor) -> Tensor:
        each = torch.arange(len(self.scores))
        with_next = () if self.scores.dim() == 3 else (values.roll(-1, dims=1),)
        scores = self.scores[(each, values, *with_next)]
        return scores[:, asked].sum(1).argmax(-1)


def tasks_of(sequence: str, family: str, *, tasks: int, factors: int, dim: int, classes: int, seed: int) -> Tasks:
    """The seed's sequence of that name. Families of one seed have the same tasks; `interacting` has another rule.

    dim divides by factors. ValueError for an unknown sequence or family.
    """
    _known("sequence", sequence, SEQUENCES)
    _known("family", family, FAMILIES)
    chance = torch.Generator().manual_seed(seed)
    embedding = torch.randn(factors, VALUES, dim // factors, generator=chance)
    embedding[..., 0] = 1.0
    if sequence == "values":
        every = torch.tensor(list(itertools.product(range(OWN), repeat=factors)))
        own = [[torch.randperm(VALUES, generator=chance)[:OWN] for _ in range(factors)] for _ in range(tasks)]
        compositions = torch.stack([torch.stack(task, 1).gather(0, every) for task in own])
    else:
        drawn = [torch.randperm(VALUES**factors, generator=chance)[: DRAWN[sequence]] for _ in range(tasks)]
        compositions = torch.stack(drawn)[..., None] // VALUES ** torch.arange(factors) % VALUES
    apart = sequence in ("separate", "apart")
    asked = torch.eye(factors).bool()[torch.arange(tasks) % factors] if apart else torch.ones(tasks, factors).bool()
    scores = torch.randn(factors, *[VALUES] * (2 if family == "interacting" else 1), classes, generator=chance)
    return Tasks(embedding, scores, asked, tuple(range(tasks)) if apart else (0,) * tasks, compositions)


def output_projection(family: str, factors: int, dim: int, seed: int) -> Tensor:
    """Orthogonal [dim, dim], by which attention's heads write: what a family's name says of where factors sit."""
    _known("family", family, FAMILIES)
    chance = torch.Generator().manual_seed(seed)
    eye = torch.eye(dim)
    if family == "mixed":
        return torch.linalg.qr(torch.randn(dim, dim, generator=chance)).Q
    if family == "permuted":  # no slice stays where it was
        order = torch.randperm(factors, generator=chance)
        to = torch.empty_like(order)
        to[order] = order.roll(1)
        return eye.unflatten(0, (factors, -1))[to].flatten(0, 1)
    return eye


def readout(sequence: str, output: Tensor, *, questions: int, classes: int, factors: int, seed: int) -> Tensor:
    """[questions * classes, dim]: random, of `separate` only for the slice of the question's factor. It reads what the
    heads wrote by `output` [dim, dim], so that families differ in nothing but the coordinates.
    """
    _known("sequence", sequence, SEQUENCES)
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(questions, classes, factors, len(output) // factors, generator=chance)
    if sequence == "separate":
        weight *= torch.eye(factors)[torch.arange(questions) % factors][:, None, :, None]
    return weight.flatten(2).flatten(0, 1) @ output.T


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(names)}")
