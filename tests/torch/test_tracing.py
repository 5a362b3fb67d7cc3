"""`torch.jit.trace`, `torch.jit.script` and `torch.fx` on models that hold a GRU; torch.nn.GRU is the judge."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritongru
from tritongru.compat import GRU

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated.*"),
]


def pair(*args, **kwargs) -> tuple[nn.GRU, GRU]:
    """Return a torch.nn.GRU and this package's with the same weights."""
    theirs, ours = nn.GRU(*args, **kwargs), GRU(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


class Padded(nn.Module):
    """A model as its author wrote it for torch.nn.GRU."""

    def __init__(self, gru: nn.Module):
        super().__init__()
        self.gru = gru

    def forward(self, x):
        output, h_n = self.gru(x)
        return output.relu(), h_n


class Packed(Padded):
    """The same with packed sequences."""

    def forward(self, x, lengths, hx=None):
        output, h_n = self.gru(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        return pad_packed_sequence(output)[0], h_n


class Extended(Padded):
    """The same with what torch.nn.GRU has not."""

    def forward(self, x, lengths, resets):
        return self.gru(x, lengths=lengths, resets=resets)


def saved(traced) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_trace_holds_for_other_lengths_and_batches(grad, training):
    theirs, ours = pair(3, 5, 2, bidirectional=True)
    model = Padded(ours).train(training)
    with torch.set_grad_enabled(grad):
        # From T = 32 on "auto" runs a training call on the eager scan; the trace is checked without gradients.
        traced = torch.jit.trace(model, torch.randn(40, 4, 3))
    assert not any("tritongru" in node.kind() for node in traced.inlined_graph.nodes())
    for shape in ((40, 4, 3), (1, 1, 3), (7, 2, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), Padded(theirs)(x), rtol=0, atol=0)


def test_a_traced_model_trains():
    theirs, ours = pair(3, 5, 2)
    traced = torch.jit.trace(Padded(ours), torch.randn(40, 4, 3))
    x = torch.randn(6, 2, 3)
    traced(x)[0].sum().backward()
    Padded(theirs)(x)[0].sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("first", [[6, 6, 6], [5, 2, 6]], ids=["full", "ragged"])
def test_a_trace_with_a_packed_sequence_holds_for_other_lengths(backend, with_hx, first):
    theirs, ours = pair(3, 5, 2, bidirectional=True)
    ours.backend = backend

    def inputs(lengths):
        x, hx = torch.randn(max(lengths), len(lengths), 3), torch.randn(4, len(lengths), 5)
        return (x, torch.tensor(lengths), hx) if with_hx else (x, torch.tensor(lengths))

    traced = torch.jit.trace(Packed(ours), inputs(first))
    for lengths in (first, [4, 4], [1, 9, 3, 2], [1]):
        given = inputs(lengths)
        torch.testing.assert_close(traced(*given), Packed(theirs)(*given))


def test_a_trace_with_lengths_and_resets_holds_for_others():
    _, ours = pair(3, 5, 2, bidirectional=True)
    model = Extended(ours)

    def inputs(T, B):
        return torch.randn(T, B, 3), torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.4

    traced = torch.jit.trace(model, inputs(6, 4))
    for T, B in ((6, 4), (1, 1), (9, 3)):
        given = inputs(T, B)
        torch.testing.assert_close(traced(*given), model(*given))


def test_a_trace_of_the_keras_layer_is_torchs_own_gru():
    layer = tritongru.GRU(5, input_size=3, return_sequences=True, go_backwards=True)
    traced = torch.jit.trace(layer, torch.randn(2, 40, 3))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert "aten::gru" in kinds and not any("tritongru" in kind for kind in kinds)
    x = torch.randn(3, 7, 3)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("kind", ["trace", "script"])
def test_the_file_needs_no_package_but_torch(kind, tmp_path):
    theirs, ours = pair(3, 5, 2)
    model, x = Padded(ours), torch.randn(6, 2, 3)
    made = torch.jit.trace(model, x) if kind == "trace" else torch.jit.script(model)
    made.save(tmp_path / "model.pt")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; sys.modules['tritongru'] = None\n"
        "torch.save(torch.jit.load('model.pt')(torch.load('x.pt')), 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), Padded(theirs)(x))


@pytest.mark.parametrize("options", [dict(), dict(batch_first=True, bias=False), dict(dropout=0.5)], ids=str)
def test_script(options):
    theirs, ours = pair(3, 5, 2, bidirectional=True, **options)
    x = torch.randn(6, 2, 3)
    model = Padded(ours).eval()
    scripted = torch.jit.load(saved(torch.jit.script(copy.deepcopy(model))))
    torch.testing.assert_close(scripted(x), Padded(theirs).eval()(x), rtol=0, atol=0)
    assert type(model.gru) is GRU
    # The layer alone, and in training: the parameters are the layer's own.
    layer = torch.jit.script(ours.train())
    assert layer.training and all(a is b for a, b in zip(layer.parameters(), ours.parameters(), strict=True))
    assert layer.dropout == ours.dropout


def test_script_refuses_what_torch_cannot():
    cases = [
        (GRU(3, 5, recurrent_dropout=0.5), "recurrent_dropout=0.5"),
        (GRU(3, 5, zoneout=0.5), "zoneout=0.5"),
        (GRU(3, 5, gradient_clip=0.0), "gradient_clip=0.0"),
        (GRU(3, 5, layer_norm="joint"), "layer_norm='joint'"),
        (GRU(3, 4, heads=2), "heads=2"),
        (GRU(3, 5, backend="eager"), "backend='eager'"),
        (nn.utils.parametrizations.weight_norm(GRU(3, 5), "weight_hh_l0"), "weight_hh_l0 is computed"),
    ]
    for layer, message in cases:
        with pytest.raises(ValueError, match=message):
            torch.jit.script(Padded(layer))
        with pytest.raises(ValueError, match=message):
            layer.to_torch()
    with pytest.raises(RuntimeError, match="lengths"):
        torch.jit.script(Extended(GRU(3, 5)))


def test_symbolic_trace_records_one_call():
    theirs, ours = pair(3, 5, 2, batch_first=True)
    traced, judge = fx.symbolic_trace(Padded(ours)), fx.symbolic_trace(Padded(theirs))
    assert [(n.op, n.target) for n in traced.graph.nodes] == [(n.op, n.target) for n in judge.graph.nodes]
    assert traced.gru is ours
    for shape in ((2, 6, 3), (1, 1, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), judge(x))


def test_symbolic_trace_keeps_every_argument():
    ours = GRU(3, 5, 2)

    class Model(Padded):
        def forward(self, x, hx, lengths, resets):
            return self.gru(x, hx, lengths=lengths, resets=resets, backend="eager")

    traced = fx.symbolic_trace(Model(ours))
    x, hx, lengths, resets = torch.randn(6, 2, 3), torch.randn(2, 2, 5), torch.tensor([6, 2]), torch.rand(6, 2) < 0.4
    expected = ours(x, hx, lengths=lengths, resets=resets)
    torch.testing.assert_close(traced(x, hx, lengths, resets), expected)
    assert ours.last_decision.backend == "eager"
    traced.graph.lint()


def test_symbolic_trace_of_the_layer_alone_is_refused():
    with pytest.raises(TypeError, match="trace a module that holds it"):
        fx.symbolic_trace(GRU(3, 5))
