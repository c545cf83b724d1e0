"""What one would write by hand: a linear layer that trains on NVFP4 values, as an `autograd.Function` in plain PyTorch.

The recipe is "averis": token means leave activations and gradients before they are rounded, and come back as rank-one
terms. Under autocast products are of bf16 values. The quantiser is either a plain one, with all that the recipe asks
(weights in 16 x 16 blocks, gradients rounded stochastically), or torchao's, which rounds to nearest in 1 x 16 blocks,
so that a weight is quantised twice.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_BLOCK, _FP4_MAX, _E4M3_MAX = 16, 6.0, 448.0


class Quantizer(NamedTuple):
    """matrix: fp32 [m, k] to the values that stand for it, in a dtype, with blocks along an axis; stochastic or not.

    weight: [out, in] to the values for fprop, with blocks along axis 1, and those for dgrad, along axis 0.
    """

    matrix: Callable[[Tensor, torch.dtype, int, bool], Tensor]
    weight: Callable[[Tensor], tuple[Tensor, Tensor]]


class FakeQuantizedLinear(nn.Module):
    """A linear without bias, on the weight of another."""

    def __init__(self, linear: nn.Linear, quantizer: str) -> None:
        super().__init__()
        if linear.bias is not None:
            raise ValueError("not written for biases: the models here have none")
        self.weight: Tensor = linear.weight
        self.quantizer: str = quantizer

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        tokens = x.flatten(0, -2).to(dtype)
        y: Tensor = _FakeQuantizedMM.apply(tokens, self.weight.to(dtype), self.quantizer)
        return y.unflatten(0, x.shape[:-1])


class _FakeQuantizedMM(torch.autograd.Function):
    """x [tokens, in] times weight [out, in] transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantizer: str) -> Tensor:
        quantize = QUANTIZERS[quantizer]
        mean = x.mean(0, dtype=torch.float32)
        for_fprop, for_dgrad = quantize.weight(weight)
        ctx.save_for_backward(x, mean, weight, for_dgrad)
        ctx.quantizer = quantizer
        residual = quantize.matrix(x - mean, x.dtype, 1, False)
        return torch.addmm(mean.to(x.dtype) @ weight.t(), residual, for_fprop.t())

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None]:
        x, mean, weight, for_dgrad = ctx.saved_tensors
        quantize = QUANTIZERS[ctx.quantizer]
        mean_d = d.mean(0, dtype=torch.float32)
        residual = d - mean_d
        by_features = quantize.matrix(residual, d.dtype, 1, True)
        dx = torch.addmm(mean_d.to(d.dtype) @ weight, by_features, for_dgrad)
        by_tokens = quantize.matrix(residual, d.dtype, 0, True)
        of_means = torch.outer(mean_d * d.shape[0], mean).to(d.dtype)
        dw = torch.addmm(of_means, by_tokens.t(), quantize.matrix(x - mean, x.dtype, 0, False))
        return dx, dw, None


def plain(x: Tensor, dtype: torch.dtype, axis: int, stochastic: bool, square: bool = False) -> Tensor:
    """x fp32 [m, k], of extents that divide by 16, rounded to NVFP4 values. square: blocks of 16 x 16."""
    m, k = x.shape
    if square:
        blocks, within = x.view(m // _BLOCK, _BLOCK, k // _BLOCK, _BLOCK), [1, 3]
    elif axis == 1:
        blocks, within = x.view(m, k // _BLOCK, _BLOCK), [2]
    else:
        blocks, within = x.view(m // _BLOCK, _BLOCK, k), [1]
    largest = blocks.abs().amax(within, keepdim=True)
    tensor_scale = largest.amax() / (_E4M3_MAX * _FP4_MAX)
    scale = (largest / (_FP4_MAX * tensor_scale)).to(torch.float8_e4m3fn).float() * tensor_scale
    y = (blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)).clamp(-_FP4_MAX, _FP4_MAX)
    magnitude = y.abs()
    step = torch.where(magnitude >= 4, 2.0, torch.where(magnitude >= 2, 1.0, 0.5))
    y = y / step
    y = (torch.floor(y + torch.rand_like(y)) if stochastic else torch.round(y)) * step
    return (y * scale).view(m, k).to(dtype)


def _plain_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    values = plain(weight.float(), weight.dtype, 1, False, square=True)
    return values, values


def _torchao(x: Tensor, dtype: torch.dtype, axis: int, stochastic: bool) -> Tensor:
    """By torchao, which quantises the last axis of a contiguous matrix, to nearest whatever is asked."""
    from torchao.prototype.mx_formats.nvfp4_tensor import (  # type: ignore[import-untyped, unused-ignore]
        NVFP4Tensor,
        per_tensor_amax_to_scale,
    )

    x = x if axis == 1 else x.t().contiguous()
    scale = per_tensor_amax_to_scale(x.abs().amax())
    values: Tensor = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(dtype)
    return values if axis == 1 else values.t()


def _torchao_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    return _torchao(weight, weight.dtype, 1, False), _torchao(weight, weight.dtype, 0, False)


QUANTIZERS = {"plain": Quantizer(plain, _plain_weight), "torchao": Quantizer(_torchao, _torchao_weight)}


def fake_quantize(model: nn.Module, quantizer: str) -> nn.Module:
    """The model, its linears replaced in place; what is called a head stays, as it does with ours.

    Raises ImportError where torchao is asked for and missing.
    """
    if quantizer == "torchao" and importlib.util.find_spec("torchao") is None:
        raise ImportError('torchao is not installed: pip install -e ".[bench]"')
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not name.endswith("head"):
                setattr(parent, name, FakeQuantizedLinear(child, quantizer))
    return model
