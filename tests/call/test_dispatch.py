"""The dispatcher: every reason names its argument and value, a named backend raises, "auto" never does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tritongru
from tritongru import UnsupportedError, environment, functional
from tritongru.backends import numba
from tritongru.backends.triton import reasons
from tritongru.call.arguments import Arguments
from tritongru.call.check import Signature
from tritongru.call.errors import BACKENDS
from tritongru.call.problem import Shape, Variant
from tritongru.dispatch import decide, explain
from tritongru.tools.oracle.cases import Case, make_arguments
from tritongru.tuning.configs import Device


def facts(device: str = "cuda", dtype: torch.dtype = torch.float32, **changes) -> Signature:
    variant = {name: changes.pop(name) for name in list(changes) if name in Variant._fields}
    defaults = dict(units=9, shape=Shape(3, 7, 5, 9))
    return Signature(device, dtype, Variant(**variant), **(defaults | changes))


H100 = Device(132, 227 * 1024, name="Test GPU", target="sm_90")

REJECTED_BY_ATEN = [
    (dict(activation="relu"), "activation='relu'"),
    (dict(recurrent_activation="hard_sigmoid"), "recurrent_activation='hard_sigmoid'"),
    (dict(reset_after=False), "reset_after=False"),
    (dict(has_mask=True), "mask"),
    (dict(has_resets=True), "resets"),
    (dict(input_dropouts=3), "input_dropout has 3 masks"),
    (dict(recurrent_dropouts=1), "recurrent_dropout"),
    (dict(recompute=True), "recompute=True"),
    (dict(has_kernel=False), "gates given"),
    (dict(has_zoneout=True), "zoneout given"),
    (dict(gradient_clip=0.5), "gradient_clip=0.5"),
    (dict(layer_norm="joint"), "layer_norm='joint'"),
    (dict(precision="bf16x3"), "precision='bf16x3'"),
    (dict(tracing=True, shape=None), "torch.compile"),
    (dict(shape=Shape(3, 0, 5, 9)), "T=0"),
    (dict(shape=Shape(0, 7, 5, 9)), "B=0"),
]


@pytest.mark.parametrize("changes, text", REJECTED_BY_ATEN, ids=[text for _, text in REJECTED_BY_ATEN])
def test_aten_names_argument_and_value(changes: dict, text: str) -> None:
    decision = decide(facts(**changes))
    assert decision.backend != "aten"
    with pytest.raises(UnsupportedError, match="aten") as caught:
        decide(facts(**changes), "aten")
    assert any(text in reason for reason in caught.value.rejected["aten"])


@pytest.mark.parametrize("backend", ["triton", "eager"])
@pytest.mark.parametrize("name", ["swish", "gelu", "mish", "softmax"])
@pytest.mark.parametrize("argument", ["activation", "recurrent_activation"])
def test_scans_need_a_derivative_of_the_output(backend: str, name: str, argument: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        decide(facts(**{argument: name}), backend)
    assert any(f"{argument}={name!r}" in reason for reason in caught.value.rejected[backend])
    assert decide(facts(**{argument: name})).backend == "reference"


def test_triton_names_dtype_and_device(monkeypatch) -> None:
    monkeypatch.setattr(reasons, "reasons_against_environment", lambda device, index: ())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert any("float64" in reason for reason in decide(facts(dtype=torch.float64)).rejected["triton"])
    assert any("device='cpu'" in reason for reason in decide(facts("cpu")).rejected["triton"])
    assert any("device='mps'" in reason for reason in decide(facts("mps")).rejected["triton"])
    monkeypatch.setattr(reasons, "device_limits", lambda device: H100)
    # With fewer units torch's own GRU is cuDNN's persistent kernel.
    assert decide(facts("cuda", units=256, shape=Shape(3, 7, 5, 256))).backend == "triton"


@pytest.mark.parametrize(
    "dtype, units, too_many, needed",
    [
        (torch.float32, 64, 65, 196608),
        (torch.float32, 50, 128, 196608),
        (torch.bfloat16, 128, 129, 393216),
        (torch.float16, 100, 250, 393216),
        (torch.bfloat16, 65, 272, 1572864),
    ],
)
def test_a_norm_runs_on_triton_where_one_program_holds_a_row(
    monkeypatch, dtype, units: int, too_many: int, needed: int
) -> None:
    monkeypatch.setattr(reasons, "reasons_against_environment", lambda device, index: ())
    monkeypatch.setattr(reasons, "device_limits", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    decision = explain(facts(dtype=dtype, units=units, shape=Shape(3, 7, 5, units), layer_norm="joint"))
    assert decision.backend == "triton"
    (line,) = decision.launches
    assert line.startswith("forward: single") and "not resident: layer_norm='joint'" in line
    decision = explain(facts(dtype=dtype, units=too_many, shape=Shape(3, 7, 5, too_many), layer_norm="joint"))
    (reason,) = decision.rejected["triton"]
    assert reason.startswith(f"layer_norm='joint' with units={too_many}: ") and "exchange" in reason
    assert f"{needed} bytes of recurrent weights where 174336 bytes of shared memory" in reason
    assert decision.backend == "eager"


def test_without_triton(monkeypatch) -> None:
    monkeypatch.setattr(environment, "has_triton", lambda: False)
    decision = decide(facts("cuda"))
    assert decision.backend == "aten"
    assert decision.rejected["triton"] == ("triton is not installed",)


@settings(max_examples=150, deadline=None)
@given(
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    activation=st.sampled_from(list(tritongru.activations.TABLE)),
    recurrent_activation=st.sampled_from(list(tritongru.activations.TABLE)),
    reset_after=st.booleans(),
    has_mask=st.booleans(),
    has_resets=st.booleans(),
    input_dropouts=st.sampled_from([0, 1, 3]),
    recurrent_dropouts=st.sampled_from([0, 1, 3]),
    precision=st.sampled_from(["ieee", "tf32", "tf32x3", "bf16x3"]),
    recompute=st.booleans(),
)
def test_auto_never_raises_and_accounts_for_every_backend(**description) -> None:
    decision = decide(facts(**description))
    assert {decision.backend, *decision.rejected} == set(BACKENDS)
    assert decision.backend not in decision.rejected
    assert all(reasons and all(reasons) for reasons in decision.rejected.values())
    assert decide(facts(**description), decision.backend).backend == decision.backend


@pytest.fixture
def without_numba(monkeypatch) -> None:
    monkeypatch.setattr(numba, "reasons_against_numba", lambda: ("numba is not installed",))


def test_auto_on_a_cpu_takes_numba_first(monkeypatch) -> None:
    pytest.importorskip("numba")
    for wants_gradients in (False, True):
        decision = decide(facts("cpu", wants_gradients=wants_gradients, has_mask=True, recurrent_dropouts=3))
        assert decision.backend == "numba" and "eager" in decision.rejected
    assert "device='mps' is not 'cpu'" in decide(facts("mps")).rejected["numba"]
    assert decide(facts("cpu", activation="gelu")).backend == "reference"
    assert decide(facts("cpu", wants_gradients=True, shape=Shape(3, 1, 5, 9), reset_gate_first=True)).backend == "numba"
    for cache, backend, of_gradients in ((1 << 20, "numba", "aten"), (1 << 21, "eager", "numba")):
        monkeypatch.setattr(environment, "second_cache", lambda cache=cache: cache)
        # A decision for a shape is kept.
        one_step = facts("cpu", wants_gradients=True, shape=Shape(16, 1, cache >> 18, 512), reset_gate_first=True)
        assert decide(one_step).backend == of_gradients, "a library sums faster on some processors"
        far = facts("cpu", shape=Shape(16, 4, cache >> 18, 1024))
        assert decide(far).backend == backend, "packing Keras's weights takes longer than the steps on some processors"


def test_a_numba_that_cannot_be_imported_is_passed_over(monkeypatch) -> None:
    def broken(name: str):
        raise ImportError("Numba needs NumPy 2.3 or less")

    environment.forget()
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(environment.importlib, "import_module", broken)
    try:
        decision = decide(facts("cpu", has_mask=True))
        assert decision.backend == "eager" and "Numba needs NumPy" in decision.rejected["numba"][0]
    finally:
        environment.forget()


def test_auto_on_a_cpu_takes_the_faster_of_eager_and_aten(without_numba) -> None:
    def chosen(time: int, batch: int, units: int, wants_gradients: bool, device: str = "cpu") -> str:
        shape = Shape(batch, time, 8, units)
        return decide(facts(device, units=units, shape=shape, wants_gradients=wants_gradients)).backend

    assert chosen(9, 1, 256, False) == chosen(15, 64, 256, True) == "aten"
    assert chosen(1, 1, 256, False) == chosen(8, 1, 256, False) == "eager"
    for steps, backend in ((2, "eager"), (3, "aten")):
        few = facts("cpu", shape=Shape(1, steps, 8, 9), reset_gate_first=True)
        assert decide(few).backend == backend, "torch's own GRU takes torch's weights as they are"
    assert chosen(100, 1, 64, True) == chosen(1000, 1, 64, False) == chosen(50, 16, 512, False) == "eager"
    assert chosen(100, 32, 128, False) == chosen(128, 1, 256, False) == "aten"
    assert chosen(64, 1, 64, False) == chosen(200, 1, 512, False) == chosen(16, 8, 256, False) == "aten"
    assert chosen(100, 32, 128, False, "mps") == "aten"


def test_a_call_that_wants_gradients_says_so(without_numba) -> None:
    arguments = make_arguments(Case(2, 64, 3, 4, layout="torch"))
    assert gru_decision(arguments) == "aten"
    biases = tuple(b.requires_grad_() for b in arguments["bias"])
    assert gru_decision(arguments | {"bias": biases}) == "eager"
    with torch.no_grad():
        assert gru_decision(arguments | {"bias": biases}) == "aten"


def gru_decision(arguments: dict) -> str:
    return functional.explain_call(Arguments(**arguments)).backend


def test_decision_reads_well(without_numba) -> None:
    text = str(decide(facts("cpu", has_mask=True)))
    assert text.splitlines()[0] == "backend: eager"
    assert "not aten: mask or lengths given" in text


def test_a_named_backend_never_falls_back() -> None:
    arguments = make_arguments(Case(mask=True))
    with pytest.raises(UnsupportedError, match="backend='aten'.*mask"):
        tritongru.gru(**arguments, backend="aten")
    with pytest.raises(UnsupportedError, match="activation='gelu'"):
        tritongru.gru(**make_arguments(Case(activation="gelu")), backend="eager")


def test_a_callable_runs_on_the_reference() -> None:
    arguments = make_arguments(Case()) | {"activation": lambda x: torch.sin(x)}
    assert tritongru.gru(**arguments)[0].shape == (3, 7, 9)
    with pytest.raises(UnsupportedError, match="activation"):
        tritongru.gru(**arguments, backend="eager")


def test_explain_runs_nothing_and_agrees_with_the_call() -> None:
    layer = tritongru.GRU(4, input_size=3)
    x, mask = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    decision = tritongru.explain(layer, x, mask)
    layer(x, mask=mask)
    assert layer.last_decision.backend == decision.backend
    assert any("mask" in reason for reason in decision.rejected["aten"])


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="`backend` must be one of.*got 'cudnn'"):
        tritongru.gru(**make_arguments(Case()), backend="cudnn")


def test_import_is_light() -> None:
    code = (
        "import sys, tritongru; "
        "bad = [m for m in ('triton', 'h5py', 'rich', 'matplotlib', 'keras', 'tensorflow') if m in sys.modules]; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
