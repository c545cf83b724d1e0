"""The Hadamard transform: the matrix product of its definition, in a fixed order, orthogonal."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats.hadamard import SIGNS, SIZE, hadamard, inverse_hadamard
from tests.fake_kernels import equal_bits
from tests.formats.inputs import ANY_FLOAT, DISTRIBUTIONS, gaussian
from tests.scalar import hadamard as scalar
from tests.scalar.floats import to_bf16


def test_signs_are_those_of_the_recipe() -> None:
    assert list(SIGNS) == scalar.SIGNS
    assert len(SIGNS) == SIZE == scalar.SIZE


def test_the_matrix_is_plus_and_minus_a_quarter_by_the_parity_of_common_bits() -> None:
    expected = [[s * (-1) ** (i & j).bit_count() / 4 for j in range(16)] for i, s in enumerate(scalar.SIGNS)]
    assert hadamard(torch.eye(16)).tolist() == expected


@given(st.lists(st.integers(-(2**18), 2**18), min_size=16, max_size=16))
def test_integers_are_transformed_exactly(values: list[int]) -> None:
    assert hadamard(torch.tensor(values).float()).tolist() == [float(v) for v in scalar.exact(values)]


@given(st.lists(ANY_FLOAT.map(lambda v: v / 32), min_size=16, max_size=16))
def test_any_floats_are_transformed_to_four_roundings(values: list[float]) -> None:
    x = np.array(values, np.float32)
    got = hadamard(torch.from_numpy(x)).tolist()
    bound = 4 * 2**-24 * 1.001 * float(np.abs(x.astype(np.float64)).sum()) / 4 + 2**-149
    assert all(abs(g - e) <= bound for g, e in zip(got, scalar.exact(x), strict=True))


@pytest.mark.parametrize("values", DISTRIBUTIONS)
def test_the_order_of_sums_is_fixed_to_the_bit(values: Callable[[int, int], Tensor]) -> None:
    x = values(64, 256)
    expected = torch.from_numpy(scalar.butterflies(x.numpy()))
    assert equal_bits(hadamard(x), expected)
    narrow = [float(to_bf16(v)) for v in expected.numpy().flat]
    assert hadamard(x).bfloat16().float().flatten().tolist() == narrow


def test_another_order_of_sums_gives_other_bits() -> None:
    """So the test above can fail."""
    x = gaussian(64, 16)
    product = x @ hadamard(torch.eye(16))
    assert not torch.equal(product, hadamard(x))
    torch.testing.assert_close(product, hadamard(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 35), (16,), (3, 17, 5), (2, 2, 3, 40), (0, 16), (4, 0)], ids=str)
def test_along_any_axis_padded_with_zeros_to_sixteens(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for axis in range(-len(shape), len(shape)):
        last = x.movedim(axis, -1)
        padded = F.pad(last, (0, -shape[axis] % 16))
        assert equal_bits(hadamard(x, axis).movedim(axis, -1), hadamard(padded))


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0, 1]))
def test_the_inverse_gives_back_the_padded_input(rows: int, cols: int, axis: int) -> None:
    x = gaussian(rows, cols)
    padded = F.pad(x, (0, -cols % 16) if axis == 1 else (0, 0, 0, -rows % 16))
    torch.testing.assert_close(inverse_hadamard(hadamard(x, axis), axis), padded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [16, 50, 64])
def test_a_product_along_the_transformed_axis_is_what_it_was(k: int) -> None:
    a, b = torch.randn(9, k), torch.randn(k, 7)
    product = hadamard(a, 1) @ hadamard(b, 0)
    torch.testing.assert_close(product, a @ b, rtol=1e-4, atol=1e-4)


def test_an_outlier_is_spread_over_its_group() -> None:
    x = torch.zeros(1, 48)
    x[0, 20] = 8
    assert (hadamard(x)[0, 16:32].abs() == 2).all()
    assert (hadamard(x)[0, :16] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_fp32_whatever_the_input(dtype: torch.dtype) -> None:
    x = gaussian(4, 32).to(dtype)
    assert equal_bits(hadamard(x), hadamard(x.float()))


def test_nan_and_infinity_stay_in_their_group() -> None:
    x = Tensor([1.0] * 48)
    x[20] = torch.inf
    got = hadamard(x)
    assert not got[16:32].isfinite().any()
    assert got[:16].isfinite().all()
    assert got[32:].isfinite().all()
