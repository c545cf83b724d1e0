"""The update rule's identities, and the habits of an optimizer."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spectral_compile.optim import Spectra, parameter_groups
from spectral_compile.optim.spectra import clamped
from tests.optim.matrices import SPECTRA, matrix, orthogonality


def one(weight, **settings):
    """A parameter, and an optimizer of nothing else."""
    parameter = nn.Parameter(weight.clone())
    return parameter, Spectra([parameter], **settings)


def step(parameter, optimizer, gradient):
    parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(40, 70), (70, 40)])
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_identities_of_the_clamped_momentum(m, n, spectrum, iterations):
    M, k = matrix(m, n, spectrum), 3
    U, change, V, rms = (result[0] for result in clamped([M], torch.randn(1, n, k), m, n, iterations=iterations))
    rest = (M - U @ (U.T @ M)).double()
    tail = rest.norm() / (min(m, n) - k) ** 0.5
    clamped_M = (M + (U * change) @ V.T).double()
    # The tail's energy is a difference of fp32 sums: where it is little, it is known as well as they are rounded.
    known = 1e-5 + 1e-6 * (M.norm() / rest.norm()).square().item()
    assert rms.item() == pytest.approx((tail / max(m, n) ** 0.5).item(), rel=known)
    assert clamped_M.square().mean().sqrt().item() == pytest.approx(rms.item(), rel=known)
    assert orthogonality(U) < 1e-6
    spike = clamped_M - rest  # what is left of it is tail U V': every direction as long as the tail's root mean square
    torch.testing.assert_close((spike.norm() / k**0.5), tail, rtol=2 * known, atol=0)


def test_the_update_is_as_published():
    W, lr, decay = torch.randn(24, 36), 0.02, 0.3
    parameter, optimizer = one(W, lr=lr, weight_decay=decay, rank=0.1)
    M = torch.zeros(24, 36, dtype=torch.float64)
    expected, V = W.double(), None
    for _ in range(5):
        G = torch.randn(24, 36)
        step(parameter, optimizer, G)
        M = 0.95 * M + G
        # The first V is a randomised SVD of the first gradient; from there on, the contract by Householder QR.
        V = start_of(G) if V is None else V
        P = M @ V
        U, R = torch.linalg.qr(P)
        U = U * R.diagonal().sign()
        Z = M.T @ U
        s = Z.norm(dim=0)
        V = Z / s
        tail = ((M.norm().square() - s.square().sum()) / (24 - 2)).sqrt()
        update = M + U @ (tail * V.T - s.diag() @ V.T)
        expected = (1 - lr * decay) * expected - 0.2 * lr * 6 * update / tail
    torch.testing.assert_close(parameter.data.double(), expected, rtol=1e-4, atol=1e-5)
    state = optimizer.state[parameter]
    assert set(state) == {"M", "V"}
    torch.testing.assert_close(state["V"].double(), V, rtol=1e-3, atol=1e-4)


def start_of(G):
    from spectral_compile.optim.subspace import start

    return start(G, 2).double()


def test_state_is_49_25_percent_less_than_adams():
    parameter, optimizer = one(torch.randn(400, 400))
    step(parameter, optimizer, torch.randn(400, 400))
    held = sum(value.nbytes for value in optimizer.state[parameter].values())
    adam = torch.optim.AdamW([parameter])
    adam.step()
    needed = sum(adam.state[parameter][key].nbytes for key in ("exp_avg", "exp_avg_sq"))
    assert 1 - held / needed == pytest.approx(0.4925, abs=1e-9)


@given(
    m=st.integers(1, 20),
    n=st.integers(1, 20),
    experts=st.lists(st.integers(1, 3), max_size=1),
    rank=st.floats(0.01, 1),
    scale=st.sampled_from([1e-15, 1.0, 1e12]),
)
def test_the_root_mean_square_of_every_update_is_a_fifth_of_the_rate(m, n, experts, rank, scale):
    W = torch.zeros(*experts, m, n)
    parameter, optimizer = one(W, lr=0.5, weight_decay=0.0, rank=rank)
    for _ in range(2):
        before = parameter.detach().clone()
        step(parameter, optimizer, scale * torch.randn_like(W))
        moved = (parameter.detach() - before).square().mean((-2, -1)).sqrt()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "gradient",
    [torch.outer(torch.randn(30), torch.randn(20)), torch.zeros(30, 20).index_fill(0, torch.tensor([3]), 1.0)],
    ids=["rank one", "one row"],
)
def test_without_a_tail_the_step_is_the_momentum(gradient):
    parameter, optimizer = one(torch.zeros(30, 20), lr=1.0, weight_decay=0.0, rank=0.1)
    step(parameter, optimizer, gradient)
    torch.testing.assert_close(parameter.detach(), -0.2 * gradient / gradient.square().mean().sqrt())


def test_zero_gradients_decay_weights_and_move_nothing_else():
    W = torch.randn(8, 12)
    parameter, optimizer = one(W, lr=0.1, weight_decay=0.5)
    step(parameter, optimizer, torch.zeros(8, 12))
    torch.testing.assert_close(parameter.detach(), 0.95 * W)
    assert optimizer.state[parameter]["V"].norm() > 0.9  # ready for the first gradient that is not zero
    step(parameter, optimizer, torch.randn(8, 12))
    assert parameter.isfinite().all()


@pytest.mark.parametrize("size", [1e-38, 1e-42, 1e18])
def test_gradients_at_the_ends_of_fp32_move_weights_by_no_more_than_others(size):
    parameter, optimizer = one(torch.zeros(8, 12), lr=1.0)
    step(parameter, optimizer, size * torch.randn(8, 12))
    assert parameter.abs().max() < 2


def test_nan_does_not_reach_the_cached_subspace():
    parameter, optimizer = one(torch.randn(2, 8, 12))
    step(parameter, optimizer, torch.randn(2, 8, 12))
    V = optimizer.state[parameter]["V"].clone()
    gradient = torch.randn(2, 8, 12)
    gradient[0, 0, 0] = torch.nan
    step(parameter, optimizer, gradient)
    assert torch.equal(optimizer.state[parameter]["V"][0], V[0])
    assert not torch.equal(optimizer.state[parameter]["V"][1], V[1])
    assert parameter[0].isnan().any()  # as with every optimizer: not hidden
    assert parameter[1].isfinite().all()


def test_a_nan_first_gradient_leaves_a_usable_start():
    parameter, optimizer = one(torch.randn(8, 12))
    step(parameter, optimizer, torch.full((8, 12), torch.nan))
    torch.testing.assert_close(optimizer.state[parameter]["V"].norm(dim=0), torch.ones(1))


def test_a_stack_is_its_experts_and_equal_shapes_are_batched_without_a_difference():
    W, settings = torch.randn(3, 20, 32), {"lr": 0.1, "rank": 0.1}
    stack, optimizer = one(W, **settings)
    listed = [nn.Parameter(w.clone()) for w in W]
    together = Spectra(listed, **settings)
    alone = [one(w, **settings) for w in W]
    for _ in range(4):
        G = torch.randn_like(W)
        step(stack, optimizer, G)
        for parameter, g in zip(listed, G, strict=True):
            parameter.grad = g.clone()
        together.step()
        for (parameter, own), g in zip(alone, G, strict=True):
            step(parameter, own, g)
    for i in range(3):
        assert torch.equal(listed[i], alone[i][0])
        torch.testing.assert_close(stack[i], listed[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("experts", [(), (2,)])
def test_a_split_parameter_is_its_parts(dim, experts):
    sizes, settings = (16, 8, 8), {"lr": 0.1, "rank": 0.2}
    W = torch.randn(*experts, *((32, 12) if dim == -2 else (12, 32)))
    whole = nn.Parameter(W.clone())
    optimizer = Spectra([{"params": [whole], "split": sizes, "split_dim": dim}], **settings)

    def oriented(tensor):  # the cached side of a part is the one that is not cut
        return [part if dim == -2 else part.mT for part in tensor.split(sizes, dim)]

    parts = [one(w, **settings) for w in oriented(W)]
    for _ in range(3):
        G = torch.randn_like(W)
        step(whole, optimizer, G)
        for (parameter, own), g in zip(parts, oriented(G), strict=True):
            step(parameter, own, g)
    for part, (parameter, _) in zip(oriented(whole), parts, strict=True):
        torch.testing.assert_close(part, parameter, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    W, G = torch.randn(24, 40).to(dtype), torch.randn(24, 40).to(dtype)
    half, optimizer = one(W, lr=0.1)
    wide, reference = one(W.float(), lr=0.1)
    step(half, optimizer, G)
    step(wide, reference, G.float())
    assert all(value.dtype == dtype for value in optimizer.state[half].values())
    torch.testing.assert_close(half.detach().float(), wide.detach(), rtol=2**-8, atol=1e-3)


def test_maximize_goes_the_other_way_and_a_tensor_rate_is_a_rate():
    W, G = torch.randn(10, 14), torch.randn(10, 14)
    (down, first), (up, second) = one(W, lr=0.1), one(W, lr=torch.tensor(0.1), maximize=True)
    for _ in range(3):
        step(down, first, G)
        step(up, second, -G)
    torch.testing.assert_close(down, up)


def test_maximize_holds_for_what_adamw_updates_too():
    start, gradient = torch.randn(10), torch.randn(10)
    ends = []
    for sign in (1, -1):
        parameter = nn.Parameter(start.clone())
        optimizer = Spectra([{"params": [parameter], "method": "adamw"}], lr=0.1, maximize=sign < 0)
        step(parameter, optimizer, sign * gradient)
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends)
    assert (ends[0] - start).norm() > 0.1


def test_a_step_that_a_scaler_skips_changes_nothing():
    plain, scaled = model(), model()
    ends = []
    for net, bad in ((plain, ()), (scaled, (2, 4))):
        optimizer = Spectra(parameter_groups(net), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", enabled=net is scaled, init_scale=2.0**10)  # powers of 2 round nothing
        for number in range(4 + len(bad)):
            x, y = data()
            loss = nn.functional.mse_loss(net(x), y) * (float("inf") if number in bad else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(
            [*(p.detach() for p in net.parameters()), *(t for s in optimizer.state.values() for t in s.values())]
        )
    assert scaler.get_scale() == 2.0**8  # halved at each
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_capturable_changes_no_update():
    nets, ends = (model(), model()), []
    for net, capturable in zip(nets, (False, True), strict=True):
        optimizer = Spectra(parameter_groups(net), lr=torch.tensor(0.01), capturable=capturable)
        # Outside a compiled step torch's AdamW refuses `capturable` on a CPU, where there is nothing to capture.
        step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)
        for _ in range(3):
            x, y = data()
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            step()
        ends.append([p.detach() for p in net.parameters()])
        steps = [state["step"] for state in optimizer.state.values() if "step" in state]
        assert steps
        assert all(int(value) == 3 for value in steps)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6))


def data():
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(128, 12, generator=chance)
    return x, torch.sin(x @ torch.randn(12, 6, generator=chance))


def train(net, optimizer, steps, schedule=None):
    x, y = data()
    for _ in range(steps):
        loss = nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return loss.item()


def test_it_learns_as_well_as_adamw():
    found = {}
    for rate in (3e-2, 1e-1):
        for name in ("spectra", "adamw"):
            net = model()
            groups = parameter_groups(net, roles={r"^5\.weight": "head"})
            optimizer = (
                Spectra(groups, lr=rate, weight_decay=0.0)
                if name == "spectra"
                else torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
            )
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)
            found[name] = min(found.get(name, 1e9), train(net, optimizer, 200, schedule))
    assert found["spectra"] < 0.01
    assert found["spectra"] < 1.1 * found["adamw"]


def test_resuming_from_a_checkpoint_is_the_same_to_the_bit(tmp_path):
    net = model()
    optimizer = Spectra(parameter_groups(net), lr=0.01)
    train(net, optimizer, 5)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "it.pt")
    other = model()
    resumed = Spectra(parameter_groups(other), lr=0.5)
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert train(net, optimizer, 5) == train(other, resumed, 5)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(*(copy.deepcopy(o).state_dict()["state"][0]["M"] for o in (optimizer, resumed)))


def test_a_closure_is_called_with_gradients():
    net = model()
    optimizer = Spectra(parameter_groups(net))
    x, y = data()

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_what_has_no_gradient_is_left_alone():
    parameter, optimizer = one(torch.randn(4, 4))
    before = parameter.detach().clone()
    optimizer.step()
    assert torch.equal(parameter, before)
    assert not optimizer.state[parameter]


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((4,), {}, r"not a parameter of shape \[4\]"),
        ((2, 2, 2, 2), {}, "give such parameters to AdamW"),
        ((4, 4), {"method": "adam"}, "unknown method 'adam' .did you mean 'adamw'"),
        ((4, 4), {"lr": -1.0}, "'lr' cannot be -1.0"),
        ((4, 4), {"lr": torch.ones(3)}, "'lr' cannot be a tensor of shape"),
        ((4, 4), {"momentum": 1.0}, "'momentum' cannot be 1.0; it is 0 or more, less than 1"),
        ((4, 4), {"betas": (0.9, 1.0)}, "'betas' cannot be"),
        ((4, 4), {"rank": 0.0}, "'rank' cannot be 0.0"),
        ((4, 4), {"iterations": 0}, "'iterations' cannot be 0"),
    ],
)
def test_bad_arguments_are_named(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        one(torch.zeros(shape), **settings)


def test_complex_parameters_and_sparse_gradients_are_refused():
    with pytest.raises(ValueError, match="no complex parameters"):
        one(torch.zeros(4, 4, dtype=torch.complex64))
    parameter, optimizer = one(torch.zeros(4, 4))
    parameter.grad = torch.eye(4).to_sparse()
    with pytest.raises(ValueError, match="no sparse gradients"):
        optimizer.step()


def test_a_split_must_fit_and_a_refused_group_is_not_kept():
    optimizer = Spectra([nn.Parameter(torch.zeros(4, 4))])
    with pytest.raises(
        ValueError, match=r"split into \[3, 3\] along dim -2 does not fit a parameter of shape \[4, 4\]"
    ):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(4, 4))], "split": (3, 3)})
    assert len(optimizer.param_groups) == 1
