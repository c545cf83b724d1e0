"""What stands in for your model, your data and your command line in the examples to copy from."""

import argparse
import json

import torch
from torch import Tensor
from torch.utils.data import Dataset

from spectral_compile import Explanation

VOCABULARY = 256  # one token a byte
CONTEXT = 64  # tokens a sequence


class Windows(Dataset[dict[str, Tensor]]):
    """A text as sequences that do not overlap, each with the names that models of `transformers` give their inputs."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __len__(self) -> int:
        return len(self.text) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= len(self):
            raise IndexError(index)
        tokens = self.text[index * CONTEXT : (index + 1) * CONTEXT].long()
        return {"input_ids": tokens, "labels": tokens}  # the model shifts the labels itself


def tiny_llama() -> torch.nn.Module:
    """A Llama of `transformers` with random weights: 2 blocks, 0.2M parameters; nothing is downloaded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
    )
    return LlamaForCausalLM(config)


class Parser(argparse.ArgumentParser):
    """steps: of the optimizer. options: what `torch.compile(..., options=...)` is given."""

    def __init__(self, description: str, steps: int) -> None:
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        self.add_argument("--steps", type=int, default=steps, help="optimizer steps")
        self.add_argument("--options", type=json.loads, default={}, help='of the backend: {"recipe": "mxfp4"}')


def in_four_bits(explanation: Explanation) -> str:
    """The one line of an explanation that counts the products; print the explanation for one line a product."""
    plans = [product.plan for graph in explanation.graphs for product in graph.products]
    return f"{sum(plan.quantized for plan in plans)} of {len(plans)} matrix products in four bits"
