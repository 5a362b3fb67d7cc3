"""`FlopCounterMode` counts for this package's operators what it counts for torch.nn.GRU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tritongru
from tritongru import dispatch
from tritongru.compat import GRU
from tritongru.environment import is_interpreted

T, B, I, U = 6, 4, 3, 5


def counted(function) -> tuple[int, dict]:
    """Return the count of a call, and its parts by operator."""
    with FlopCounterMode(display=False) as counter:
        function()
    parts = counter.get_flop_counts().get("Global", {})
    return counter.get_total_flops(), {str(operator): count for operator, count in parts.items()}


def counts(layer, x, hx, **options) -> tuple[tuple[int, dict], tuple[int, dict]]:
    """Return the counts of a forward pass and of the backward pass after it."""
    results = []
    forward = counted(lambda: results.extend(layer(x, hx, **options)))
    return forward, counted(lambda: (results[0].sum() + results[1].sum()).backward())


@pytest.mark.parametrize("options", [dict(), dict(num_layers=2, bidirectional=True, bias=False)], ids=str)
@pytest.mark.parametrize("x_grad", [True, False])
def test_as_much_as_torchs_own(options, x_grad):
    theirs, ours = nn.GRU(I, U, **options), GRU(I, U, **options)
    x = torch.randn(T, B, I, requires_grad=x_grad)
    hx = torch.randn(theirs.num_layers * (1 + theirs.bidirectional), B, U, requires_grad=True)
    expected = counts(theirs, x, hx)
    found = counts(ours, x, hx, backend="eager")
    assert [total for total, _ in found] == [total for total, _ in expected]
    assert set(found[0][1]) == {"tritongru.scan"} and set(found[1][1]) == {"tritongru.scan_backward"}


def test_of_rows_with_lengths_all_steps_count():
    layer, x = GRU(I, U), torch.randn(T, B, I)
    full = counted(lambda: layer(x, backend="eager"))
    assert counted(lambda: layer(x, lengths=torch.tensor([1, 2, 3, 6]))) == full
    assert full[0] == 2 * T * B * (I * 3 * U + U * 3 * U)


@pytest.mark.parametrize("recompute", [False, True])
def test_members_count_as_much_as_their_scans(monkeypatch, recompute):
    pytest.importorskip("numba")
    tritongru.flops.register()
    x, w, u = torch.randn(B, T, I), torch.randn(I, 12 * U, requires_grad=True), torch.randn(4, U, 3 * U)
    found = []
    for at_once in (True, False):
        monkeypatch.setitem(dispatch.RUNS_AT_ONCE, "numba", lambda signature, at_once=at_once: at_once)
        dispatch.forget()
        found.append(counts(tritongru.gru, x, w, recurrent_kernel=u, recompute=recompute, backend="numba"))
    dispatch.forget()
    (forward, backward), apart = found
    assert set(forward[1]) == {"tritongru.scan_members"} and set(backward[1]) == {"tritongru.scan_members_backward"}
    assert (forward[0], backward[0]) == (apart[0][0], apart[1][0])


def test_gates_that_are_rebuilt_count_again():
    x, w, u = torch.randn(B, T, I), torch.randn(I, 3 * U, requires_grad=True), torch.randn(U, 3 * U)
    totals = []
    for recompute in (False, True):
        outputs, _ = tritongru.gru(x, w, u, recompute=recompute, backend="eager")
        totals.append(counted(outputs.sum().backward)[0])
    assert totals[1] - totals[0] == 2 * T * B * (I * 3 * U + U * 3 * U)


@pytest.mark.skipif(not (is_interpreted() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("recompute", [False, True])
def test_on_triton_as_much_as_on_eager(recompute):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, w, u, b = (torch.randn(s, device=device) for s in ((B, T, I), (I, 3 * U), (U, 3 * U), (2, 3 * U)))
    leaves = [value.requires_grad_() for value in (x, w, u, b)]
    totals = []
    for backend in ("eager", "triton"):
        outputs, _ = tritongru.gru(*leaves, recompute=recompute, backend=backend)
        totals.append(counted(outputs.sum().backward)[0])
    assert totals[0] == totals[1] > 0


MAKE = {
    "compat": "layer = tritongru.compat.GRU(3, 5)",
    "two directions": "layer = tritongru.compat.GRU(3, 5, bidirectional=True)",
    "Keras's": "of_keras = tritongru.GRU(5, backend='eager')\nlayer = lambda x, backend: of_keras(x)",
    "function": "weights = torch.randn(3, 15), torch.randn(5, 15)\n"
    "layer = lambda x, backend: tritongru.gru(x, *weights, backend=backend)",
}


@pytest.mark.parametrize("kind", MAKE)
def test_the_counter_may_be_imported_after_a_call(kind):
    code = (
        "import sys, torch, tritongru\n"
        f"{MAKE[kind]}\n"
        "x = torch.randn(6, 4, 3)\n"
        "layer(x, backend='eager')\n"
        "assert 'torch.utils.flop_counter' not in sys.modules, 'it would import Triton'\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "for _ in range(2):\n"
        "    with FlopCounterMode(display=False) as counter:\n"
        "        layer(x, backend='eager')\n"
        "    print(counter.get_total_flops())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    directions = 2 if kind == "two directions" else 1
    assert list(map(int, found.stdout.split())) == [directions * 2 * T * B * (I * 3 * U + U * 3 * U)] * 2


def test_a_formula_of_the_callers_own_goes_before():
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.tritongru.scan: lambda *_, **__: 7})
    with counter:
        GRU(I, U)(torch.randn(T, B, I), backend="eager")
    assert counter.get_total_flops() == 7
