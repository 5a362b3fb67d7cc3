"""The layer at home in PyTorch: compile, export, torch.func, autocast, checkpoint, copies, parametrizations."""

from __future__ import annotations

import copy
import io
import os
import pickle

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch_release import SHARDS_ON_A_CPU

import tritongru
from tritongru.backends.operators import WHOLE
from tritongru.compat import GRU

F64 = torch.float64


def assert_gradients_equal(a: nn.Module, b: nn.Module, **tolerance):
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"d{name}: {m}", **tolerance)


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("extra", ["plain", "lengths", "resets", "hx"])
def test_compile_without_breaks_or_recompiles(bidirectional, extra, device):
    torch._dynamo.reset()
    layer = GRU(3, 5, 2, bidirectional=bidirectional, device=device)
    expected = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for T, B in ((7, 6), (5, 3), (11, 4), (3, 9)):
        x = torch.randn(T, B, 3, device=device)
        kwargs = {}
        if extra == "lengths":
            kwargs["lengths"] = torch.randint(0, T + 1, (B,), device=device)
        elif extra == "resets":
            kwargs["resets"] = torch.rand(T, B, device=device) < 0.3
        elif extra == "hx":
            kwargs["hx"] = torch.randn(2 * (1 + bidirectional), B, 5, device=device)
        for module, run in ((layer, compiled), (expected, expected)):
            module.zero_grad()
            output, h_n = run(x, **kwargs)
            (output.square().sum() + h_n.sum()).backward()
        assert_gradients_equal(layer, expected)
        torch.testing.assert_close(compiled(x, **kwargs), expected(x, **kwargs))
    assert layer.last_decision is None


@pytest.mark.parametrize("bidirectional", [False, True])
def test_export_with_dynamic_axes(bidirectional, device):
    layer = GRU(3, 5, 2, bidirectional=bidirectional, batch_first=True, device=device).eval()
    B, T = torch.export.Dim("B", min=2, max=64), torch.export.Dim("T", min=2, max=512)
    x = torch.randn(4, 7, 3, device=device)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: B, 1: T},))
    for shape in ((4, 7, 3), (3, 12, 3)):
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(program.module()(x), layer(x))


def scan_arguments(mask: bool, dtype=F64, save="gates", backend="eager"):
    T, B, I, U = 4, 2, 3, 5

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    steps = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    return (
        leaf(B, T, I).transpose(0, 1), leaf(I, 3 * U), leaf(3 * U), leaf(U, 3 * U), leaf(3 * U), leaf(B, U),
        steps if mask else None, *[None] * 5, "tanh", "sigmoid", True, False, False, False, None,
        None, 1e-5, "ieee", save, backend,
    )  # fmt: skip


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("backend", WHOLE)
def test_opcheck_of_the_scan(mask, save, backend):
    torch.library.opcheck(torch.ops.tritongru.scan, scan_arguments(mask, save=save, backend=backend))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("backend", WHOLE)
def test_opcheck_of_the_reverse_scan(mask, save, backend):
    """The input's gradient is laid out as the input, here that of a batch first, whatever a backend computes it in."""
    arguments = scan_arguments(mask, save=save, backend=backend)
    arguments = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    out, last, states, gates = torch.ops.tritongru.scan(*arguments)
    wanted = [True] * 5 + [False] * 7
    d_out, d_last = torch.randn_like(out), torch.randn_like(last)
    torch.library.opcheck(torch.ops.tritongru.scan_backward, (*arguments, out, states, gates, d_out, d_last, wanted))


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_autocast(lower, device):
    layer = GRU(3, 8, 2, bidirectional=True, device=device)
    x = torch.randn(6, 4, 3, device=device)
    with torch.autocast(device, dtype=lower):
        output, h_n = layer(x, torch.zeros(4, 4, 8, device=device))
    assert output.dtype == h_n.dtype == lower
    (output.float().square().sum() + h_n.float().sum()).backward()
    half = [p.grad.clone() for p in layer.parameters()]
    assert all(g.dtype == torch.float32 for g in half)
    layer.zero_grad()
    expected, last = layer(x)
    (expected.square().sum() + last.sum()).backward()
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=2e-2)
    for p, g in zip(layer.parameters(), half, strict=True):
        assert (p.grad - g).norm() <= 3e-2 * p.grad.norm() + 1e-3


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant, device):
    layer = GRU(3, 5, 2, dropout=0.5, device=device)
    twin = copy.deepcopy(layer)
    x = torch.randn(6, 2, 3, device=device, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.manual_seed(5)
    layer(x)[0].square().sum().backward()
    torch.manual_seed(5)
    checkpoint(twin, y, use_reentrant=use_reentrant)[0].square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert_gradients_equal(layer, twin)


def test_double_backward():
    layer = GRU(2, 3, bidirectional=True, dtype=F64)
    x, hx = torch.randn(3, 2, 2, dtype=F64, requires_grad=True), torch.randn(2, 2, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: layer(a, b)[0], (x, hx))
    assert torch.autograd.gradcheck(lambda a, b: layer(a, b, lengths=torch.tensor([1, 3])), (x, hx))


def test_gradient_penalty_equals_torch():
    theirs, ours = nn.GRU(3, 5, 2, dtype=F64), GRU(3, 5, 2, dtype=F64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3, dtype=F64)
    for layer in (theirs, ours):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(layer(leaf)[0].square().sum(), leaf, create_graph=True)
        g.square().sum().backward()
    assert_gradients_equal(ours, theirs)


def test_func_grad_and_per_sample_gradients(device):
    layer = GRU(3, 5, 2, bidirectional=True, dtype=F64, device=device)
    parameters = dict(layer.named_parameters())
    x = torch.randn(4, 3, 3, dtype=F64, device=device)

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,))[0].square().sum()

    found = grad(loss)(parameters, x)
    loss(parameters, x).backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=lambda m, name=name: f"{name}: {m}")
    each = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for name, p in layer.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_func_ensemble_of_stacked_parameters(device):
    members = [GRU(3, 5, 2, dtype=F64, device=device) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(6, 2, 3, dtype=F64, device=device)

    def call(parameters, buffers, x):
        return functional_call(skeleton, (parameters, buffers), (x,))

    output, h_n = vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    for i, member in enumerate(members):
        torch.testing.assert_close((output[i], h_n[i]), member(x))


def test_func_fallback_is_named():
    layer = GRU(3, 5)
    seen = []

    def call(x):
        seen.append(layer.explain(x))
        with pytest.raises(tritongru.UnsupportedError, match="torch.func transform"):
            layer(x, backend="eager")
        return layer(x, lengths=torch.tensor([4, 2]))[0].square().sum()

    x, tangent = torch.randn(2, 4, 2, 3)
    _, found = torch.func.jvp(call, (x,), (tangent,))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf, lengths=torch.tensor([4, 2]))[0].square().sum(), leaf)
    torch.testing.assert_close(found, (slope * tangent).sum())
    assert seen[0].backend == "reference"
    assert all("torch.func transform" in seen[0].rejected[name][0] for name in ("eager", "aten"))


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_func_inside_compile_and_over_lengths(compiled):
    torch._dynamo.reset()
    layer = GRU(3, 5)
    x, lengths = torch.randn(3, 4, 2, 3), torch.tensor([[4, 2], [0, 3], [1, 1]])

    def loss(x, lengths):
        return layer(x, lengths=lengths)[0].square().sum()

    def each(x, lengths):
        return vmap(grad(loss))(x, lengths)

    found = (torch.compile(each, fullgraph=True, backend="aot_eager") if compiled else each)(x, lengths)
    leaf = x.clone().requires_grad_()
    sum(loss(a, n) for a, n in zip(leaf, lengths, strict=True)).backward()
    torch.testing.assert_close(found, leaf.grad)


def test_func_forward_mode_and_hessian():
    layer = GRU(2, 3, dtype=F64)
    x, v = torch.randn(3, 1, 2, dtype=F64), torch.randn(3, 1, 2, dtype=F64)

    def loss(x):
        return layer(x)[0].pow(3).sum()

    hessian = torch.func.hessian(loss)(x)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(loss, x))
    value, slope = torch.func.jvp(loss, (x,), (v,))
    torch.testing.assert_close(slope, (grad(loss)(x) * v).sum())


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "save"],
)
@pytest.mark.bits
def test_copies_are_whole_and_independent(copied):
    layer = GRU(3, 5, 2, bidirectional=True, backend="eager")
    x = torch.randn(4, 2, 3)
    expected = layer(x)
    twin = copied(layer)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert twin.backend == "eager"
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    assert not torch.equal(twin(x)[0], expected[0])


def _saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return buffer


def test_to_dtype_and_meta_and_shared_memory():
    layer = GRU(3, 5, 2).to(F64)
    assert layer(torch.randn(4, 2, 3, dtype=F64))[0].dtype == F64
    assert GRU(3, 5, dtype=torch.bfloat16)(torch.randn(4, 2, 3).bfloat16())[0].dtype == torch.bfloat16
    assert all(p.is_shared() for p in layer.share_memory().parameters())
    layer.flatten_parameters()
    empty = GRU(3, 5, device="meta").to_empty(device="cpu")
    empty.reset_parameters()
    assert empty(torch.randn(4, 2, 3))[0].isfinite().all()


def test_weight_norm_and_parametrization(device):
    layer = GRU(3, 5, device=device)
    x = torch.randn(4, 2, 3, device=device)
    expected = layer(x)[0]
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], expected)
    layer(x)[0].sum().backward()
    before = layer(x)[0].detach()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert not torch.equal(layer(x)[0], before)
    assert all(p.grad is not None for p in layer.parameters())
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))

    class Zero(nn.Module):
        def forward(self, w):
            return w * 0

    plain = GRU(3, 5, device=device)
    nn.utils.parametrize.register_parametrization(plain, "weight_ih_l0", Zero())
    torch.testing.assert_close(plain(x)[0], plain(torch.randn(4, 2, 3, device=device))[0])


@pytest.mark.parametrize("shape", ["U", "1U", "BU"])
def test_learnable_initial_state(shape, device):
    B, T, I, U = 3, 4, 2, 5
    state = torch.randn({"U": (U,), "1U": (1, U), "BU": (B, U)}[shape], dtype=F64, device=device, requires_grad=True)
    x, kernel = torch.randn(B, T, I, dtype=F64, device=device), torch.randn(I, 3 * U, dtype=F64, device=device)
    recurrent = torch.randn(U, 3 * U, dtype=F64, device=device)
    outputs, last = tritongru.gru(x, kernel, recurrent, None, state)
    (outputs.square().sum() + last.sum()).backward()
    full = state.detach().expand(B, U).clone().requires_grad_()
    outputs, last = tritongru.gru(x, kernel, recurrent, None, full, backend="reference")
    (outputs.square().sum() + last.sum()).backward()
    torch.testing.assert_close(state.grad, full.grad.sum_to_size(state.shape))


def test_learnable_hx_of_a_deep_layer(device):
    layer = GRU(3, 5, 2, bidirectional=True, device=device)
    hx = nn.Parameter(torch.zeros(4, 1, 5, device=device))
    layer(torch.randn(6, 3, 3, device=device), hx.expand(-1, 3, -1))[0].sum().backward()
    assert hx.grad.shape == hx.shape and hx.grad.flatten(1).any(1).all()


@pytest.mark.bits
def test_deterministic_mode_repeats_bit_for_bit(device):
    layer = GRU(3, 5, 2, bidirectional=True, device=device)
    x, lengths = torch.randn(6, 4, 3, device=device), [6, 2, 5, 1]
    runs = []
    for _ in range(2):
        layer.zero_grad()
        output, h_n = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        (output.data.square().sum() + h_n.sum()).backward()
        runs.append([output.data.detach(), h_n.detach(), *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


def _train_in_shards(rank: int, kind: str, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = GRU(3, 6, 2, bidirectional=True)
    whole = copy.deepcopy(layer)
    x, lengths = torch.randn(5, 4, 3), torch.tensor([5, 2, 3, 1])
    own = slice(2 * rank, 2 * rank + 2)
    if kind == "fsdp":
        model = fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    else:
        model = DistributedDataParallel(layer)
    model(x[:, own], lengths=lengths[own])[0].square().mean().backward()
    whole(x, lengths=lengths)[0].square().mean().backward()
    for (name, p), q in zip(layer.named_parameters(), whole.parameters(), strict=True):
        found = p.grad.full_tensor() if kind == "fsdp" else p.grad
        torch.testing.assert_close(found, q.grad, msg=lambda m, name=name: f"d{name}: {m}")
    dist.barrier()
    dist.destroy_process_group()
    # A thread of Gloo that still waits for the interpreter's lock would abort a process that finalizes; a failure above
    # has raised by now.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_gradients_of_one(kind, tmp_path):
    if kind == "fsdp" and not SHARDS_ON_A_CPU:
        pytest.skip(f"fully_shard of torch {torch.__version__} does not work on a CPU")
    torch.multiprocessing.spawn(_train_in_shards, (kind, str(tmp_path / "store")), nprocs=2)


def test_a_sequential_model_trains(device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = GRU(1, 16, batch_first=True)
            self.head = nn.Linear(16, 1)

        def forward(self, x):
            return self.head(self.gru(x)[1][-1])

    model = Model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        x = torch.randint(0, 2, (32, 6, 1), device=device).float()
        loss = (model(x) - x.mean(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_forward_mode_keeps_its_tangent():
    """Dual numbers outside torch.func: the same tangent as the reference, and no operator that would drop it."""
    x, w, u = torch.randn(2, 3, 2), torch.randn(2, 12), torch.randn(4, 12)
    direction = torch.randn_like(x)

    def tangent(backend):
        with torch.autograd.forward_ad.dual_level():
            outputs, _ = tritongru.gru(torch.autograd.forward_ad.make_dual(x, direction), w, u, backend=backend)
            return torch.autograd.forward_ad.unpack_dual(outputs).tangent

    torch.testing.assert_close(tangent("auto"), tangent("reference"))
    with pytest.raises(tritongru.UnsupportedError, match="forward-mode"):
        tangent("eager")
