"""Why the Triton kernels cannot run a call, or should not, and how they would be launched; imports no triton."""

from __future__ import annotations

import torch

from ... import faults
from ...call.check import Signature
from ...environment import is_interpreted, reasons_against_environment
from ...tuning import choices, configs
from ...tuning.configs import MOST_WAVES, Device
from ...tuning.devices import device_limits
from ...tuning.replayed import CUDNN_STEP, CUDNN_UNITS, replayed_step
from ...tuning.tables import Key
from .. import aten
from ..reasons import reasons_against_activations, reasons_against_cells, reasons_against_transforms
from . import tilings
from .tilings import Tiling


def reasons_against(s: Signature) -> list[str]:
    """What the package, the device and the variant allow."""
    reasons = [*reasons_against_environment(s.device, s.index), *reasons_against_transforms(s)]
    if s.device == "cpu" and not is_interpreted():
        reasons.append("device='cpu' and TRITON_INTERPRET is not set")
    elif s.device not in ("cpu", "cuda"):
        reasons.append(f"device={s.device!r} is not 'cuda'")
    if s.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"dtype={s.dtype} is not float32, float16 or bfloat16")
    reasons += reasons_against_activations(s, "kernel_id")
    reasons += ["zoneout whose gradient is wanted"] if s.wants_zoneout else []
    return reasons or _reasons_against_norm(s)


def _reasons_against_norm(s: Signature) -> list[str]:
    """A norm is over all sums of a row, so that programs that share a row would have one exchange more at each step."""
    # Asked about a GPU where there is none, nothing is known of its sizes.
    if s.variant.layer_norm is None or (s.device == "cuda" and not torch.cuda.is_available()):
        return []
    device = device_limits(torch.device(s.device, s.index))
    if configs.choose_with_norm(s.units, s.dtype.itemsize, device) is not None:
        return []
    needed, most = configs.bytes_of_one_program(s.units, s.dtype.itemsize), configs.weight_budget(device)
    return [
        f"layer_norm={s.variant.layer_norm!r} with units={s.units}: no program holds all units of a row, which are "
        f"{needed} bytes of recurrent weights where {most} bytes of shared memory are for them, and several would take "
        "a further exchange per step"
    ]


def reasons_against_trying(s: Signature) -> list[str]:
    """Why "auto" passes over kernels that could be named: the interpreter's pace, or what happened to such a call."""
    if s.device == "cpu":
        return ["device='cpu': Triton's interpreter is for testing, not for speed"]
    return _reasons_from_failures(s) or _reasons_from_speed(s)


def describe_launches(s: Signature) -> tuple[str, ...]:
    """Return how the kernels would be launched for a call, and why so; nothing while sizes are unknown."""
    if s.shape is None:
        return ()
    device = device_limits(torch.device(s.device, s.index))
    lines = []
    for kernel in _passes(s):
        key = key_of(s, kernel)
        asked = s.shape.batch, device, s.recurrent_dropouts
        apart = _reasons_against_cells(s) or reasons_against_resident(key, *asked, s.members) if s.members > 1 else []
        members = 1 if apart else s.members
        reasons = _reasons_against_cells(s) or reasons_against_resident(key, *asked, members)
        if not reasons:
            tiling = _tiling_of(s, kernel, device, members)
            step = replayed_step(kernel, key.dtype, s.units, str(tiling))
            line = f"{kernel}: resident {tiling}: the recurrent weights stay in registers"
            line += "" if step is None else f"; {step:.2f} us per step and tile by the replay, not measured"
        else:
            choice = _choice_of(s, key, device)
            line = f"{kernel}: {choice.config} ({choice.source}): {choice.reason}; not resident: {'; '.join(reasons)}"
        if s.members > 1:
            line += f"; {s.members} scans " + (f"one after another: {'; '.join(apart)}" if apart else "in one launch")
        lines.append(line)
    return tuple(lines)


def runs_at_once(s: Signature) -> bool:
    """Return whether a call of several members runs them in one launch in each pass."""
    if s.shape is None or s.members < 2 or _reasons_against_cells(s):
        return False
    device = device_limits(torch.device(s.device, s.index))
    asked = s.shape.batch, device, s.recurrent_dropouts, s.members
    return not any(reasons_against_resident(key_of(s, kernel), *asked) for kernel in _passes(s))


def reasons_against_several(s: Signature, scans: int) -> list[str]:
    """Why so many scans of launches of their own do not run at the same time: their programs wait for each other."""
    assert s.shape is not None
    device, batch, reasons = device_limits(torch.device(s.device, s.index)), s.shape.batch, []
    for kernel in _passes(s):
        key = key_of(s, kernel)
        if _reasons_against_cells(s) or reasons_against_resident(key, batch, device, s.recurrent_dropouts):
            programs = configs.count_programs(_choice_of(s, key, device).config, s.units, batch)
        else:
            tiling = _tiling_of(s, kernel, device, 1)
            programs = tiling.programs(s.units) * -(-batch // tiling.block_b)
        if scans * programs > device.processors:
            reasons.append(f"{scans * programs} programs of {kernel} scans on {device.processors} multiprocessors")
    return reasons


def _reasons_against_cells(s: Signature) -> list[str]:
    """What the plain kernels compute and the resident ones do not."""
    return reasons_against_cells(s.has_zoneout, s.variant)


def _choice_of(s: Signature, key: Key, device: Device) -> choices.Choice:
    """Return how the plain kernel of a pass is launched."""
    assert s.shape is not None
    return choices.choose(key, s.shape.batch, device, s.variant.layer_norm is not None)


def _passes(s: Signature) -> tuple[str, ...]:
    return ("forward", "backward") if s.wants_gradients else ("forward",)


def reasons_against_resident(key: Key, batch: int, device: Device, drops: int, members: int = 1) -> list[str]:
    """Why the kernels with weights in registers do not run a problem: what they cannot, or a table of the user's.

    Args:
        key: of the plain kernel. batch: B. drops: recurrent dropout masks. members: scans in one launch.
    """
    reasons = tilings.reasons_against(key.kernel, key.units, key.dtype, key.precision, batch, device, drops, members)
    if not reasons and choices.choose(key, batch, device).source == "user":
        reasons.append("a table of the user's names a configuration of the plain kernel")
    return reasons


def key_of(s: Signature, kernel: str) -> Key:
    """Return what a launch configuration of "forward" or "backward" is chosen for."""
    masked = s.has_mask or s.has_resets
    return Key.of(kernel, s.dtype, s.precision, s.units, s.recurrent_dropouts > 0, masked, not s.variant.reset_after)


def _reasons_from_speed(s: Signature) -> list[str]:
    # One step is one launch in any schedule.
    if s.shape is None or s.shape.time == 1 or aten.reasons_against(s):
        return []
    device, batch = device_limits(torch.device(s.device, s.index)), s.shape.batch
    reason = choices.reason_from_race(key_of(s, "forward"), batch, s.wants_gradients, device)
    if reason is not None:
        return [reason] if reason else []
    return list(filter(None, (_reason_from_estimates(s, kernel, device) for kernel in _passes(s))))[:1]


def _reason_from_estimates(s: Signature, kernel: str, device: Device) -> str:
    """Return why, as far as is known unmeasured, torch's own GRU is to be preferred to a kernel; "" if it is not."""
    assert s.shape is not None
    key, batch = key_of(s, kernel), s.shape.batch
    tiling, waves = None, 1
    members = s.members if runs_at_once(s) else 1
    if _reasons_against_cells(s) or reasons_against_resident(key, batch, device, s.recurrent_dropouts, members):
        if reason := choices.reason_from_schedule(key, batch, device):
            return reason
    else:
        tiling = _tiling_of(s, kernel, device, members)
        waves = tilings.count_waves(tiling, s.units, batch, device, members)
        if waves > MOST_WAVES:
            return choices.reason_from_waves(kernel, waves)
    # Packed sequences do not run on it.
    if s.units > CUDNN_UNITS[s.wants_gradients] or s.has_mask or not device.target.startswith("sm_"):
        return ""
    step = None if tiling is None else replayed_step(kernel, key.dtype, s.units, str(tiling))
    if step is not None and waves * step < CUDNN_STEP:
        return ""
    ours = "is not known" if step is None else f"takes {waves * step:.2f} us by a replay of its machine code"
    return (
        f"for units={s.units} aten runs cuDNN's persistent kernel, with {CUDNN_STEP} us per step published, and a step "
        f"of the {kernel} kernel {ours}; nothing was measured here"
    )


def _tiling_of(s: Signature, kernel: str, device: Device, members: int) -> Tiling:
    assert s.shape is not None
    tiling = tilings.choose(kernel, s.units, s.dtype.itemsize, s.shape.batch, device, s.recurrent_dropouts, members)
    assert tiling is not None, "no reason stands against the resident kernels"
    return tiling


def _reasons_from_failures(s: Signature) -> list[str]:
    # While tracing, the operator looks for itself at every run.
    if s.tracing or faults.is_worth_trying(scan := faults.Scan.of_signature(s)):
        return []
    failure = faults.failure_of(scan)
    return [] if failure is None else [f"it failed such a call before ({failure.cause})"]
