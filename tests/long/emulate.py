"""The long run of the emulated GPU: draw GRU calls and launch configurations for a given time.

    python tests/long/emulate.py --minutes 10
    python tests/long/emulate.py --barriers
    python tests/long/emulate.py --tables 128

Every second call runs the kernels with weights in registers, where they serve it, and every sixth several heads, which
these run in one launch. Every call runs forward and backward
through the PTX that Triton compiles, and is compared with the oracle; every access to memory is checked. A failure is
printed as the `Scan` or `ResidentScan` that repeats it. It ends with status 1 if there was one.

With --barriers it asks instead whether the machine would notice: every barrier in the compiled scans is deleted in
turn. Triton may put one where none is needed, so it ends with status 1 if more than one in ten is not missed.

With --tables it runs every entry of the shipped tuning tables up to so many units, on two batch tiles.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from emulator.driver import EmulatedGPU
from emulator.memory import AccessError
from emulator.ptx import parse
from emulator.races import RaceError
from emulator.residents import ResidentScan, check_resident
from emulator.scans import Scan, check, run, truth_and_oracle
from strategies import JUMPING
from torch import Tensor

from tritongru.backends.triton import tilings
from tritongru.backends.triton.tilings import Tiling
from tritongru.environment import triton_release
from tritongru.tools.oracle.cases import Case
from tritongru.tuning import choices
from tritongru.tuning.configs import FENCED_COPIES, LaunchConfig, next_power_of_two

ACTIVATIONS = ("tanh", "sigmoid", "hard_sigmoid", "softsign", "relu", "elu", "selu", "softplus", "linear", "leaky_relu")
# For the gates: with an unbounded one, states may grow until nothing can be compared.
BOUNDED = ("sigmoid", "hard_sigmoid", "softsign", "tanh")


def draw(seed: int) -> Scan:
    """Return the call and the configuration that `seed` stands for."""
    r = random.Random(seed)
    dtype = r.choice(["bfloat16", "float16", "float32"])
    resets = r.random() < 0.4
    activation = r.choice(["tanh", r.choice(ACTIVATIONS)])
    gates = r.choice(["sigmoid", r.choice(BOUNDED)])
    precision = r.choice(["ieee", "tf32", "tf32x3"])
    if {activation, gates} & set(JUMPING):
        dtype, precision = "float32", "ieee"
    elif dtype != "float32":
        precision = "auto"
    elif activation not in BOUNDED and precision == "tf32":
        precision = "tf32x3"  # states that grow enlarge TF32's rounding beyond what the tolerance allows for
    case = Case(
        batch=r.choice([1, 3, 18, 33, 70]), time=r.choice([1, 2, 3, 4]), input_size=3,
        units=r.choice([9, 16, 20, 32, 33, 48, 64]), dtype=dtype, seed=seed,
        activation=activation, recurrent_activation=gates, reset_after=r.random() < 0.5,
        use_bias=r.random() < 0.8, initial_state=r.random() < 0.8, mask=r.random() < 0.4, lengths=r.random() < 0.2,
        resets=resets, reset_state=r.choice([None, "initial", "rows", "steps"]) if resets else None,
        recurrent_dropouts=r.choice([0, 0, 1, 3]), zero_output_for_mask=r.random() < 0.5,
        go_backwards=r.random() < 0.5, layout=r.choice(["keras", "torch"]), recompute=r.random() < 0.2,
        precision=precision, zoneout=r.random() < 0.2, gradient_clip=r.choice([None, None, None, 0.1]),
    )  # fmt: skip
    config, capability, processors = draw_config(r, case.units), r.choice([90, 90, 80, 100]), None
    if capability == 100 and (config is None or config.block_b == 64):
        capability = 90  # sm_100 has products for tiles of 64 rows that the machine does not know
    if config is not None and config.streams and capability == 90 and triton_release() < FENCED_COPIES:
        config = replace(config, block_b=min(config.block_b, 32))  # what the tables' entries are passed over for
    if config is not None and -(-case.units // config.block_h) <= 5:
        processors = r.choice([None, None, 5])
    if (config is None or config.schedule == "single") and r.random() < 0.5:
        case = replace(case, layer_norm=r.choice(["separate", "joint"]), reset_after=True)
        if config is None and case.dtype != "float32" and r.random() < 0.4:
            case = replace(case, units=r.choice([65, 80, 100, 127, 128]), batch=r.choice([1, 3, 18]))
    return Scan(case, config, capability, seed, processors)


def draw_resident(seed: int) -> ResidentScan | None:
    """Return the call that `seed` stands for with drawn tilings, or None where the resident kernels do not serve it."""
    r, scan = random.Random(seed), draw(seed)
    case, processors = replace(scan.case, zoneout=False, gradient_clip=None, layer_norm=None), r.choice([None, None, 5])
    if case.dtype == "float32" and case.precision != "tf32":
        case = replace(case, dtype=r.choice(["bfloat16", "float16"]), precision="auto")
        if {case.activation, case.recurrent_activation} & set(JUMPING):
            return None
    size = 4 if case.dtype == "float32" else 2
    device = EmulatedGPU(capability=scan.capability, processors=processors).device
    chosen = []
    for kernel in ("forward", "backward"):
        found = [t for t in _drawn_tilings(r, case.units) if not tilings.reasons_against_tiling(
            t, kernel, case.units, size, device, case.recurrent_dropouts)]  # fmt: skip
        if not found:
            return None
        chosen.append(found[0])
    return ResidentScan(case, *chosen, scan.capability, seed, processors, r.random() < 0.3 and size == 2)


def draw_heads(seed: int) -> Scan:
    """Return the call of several heads that `seed` stands for, which the resident kernels run in one launch."""
    r, scan = random.Random(seed), draw(seed)
    heads, units = r.choice([(2, 18), (2, 64), (3, 96), (2, 160), (4, 64)])
    case = replace(scan.case, heads=heads, units=units, batch=r.choice([1, 3, 18]))
    case = replace(case, zoneout=False, gradient_clip=None, layer_norm=None)
    if case.dtype == "float32" and case.precision != "tf32":
        case = replace(case, dtype="bfloat16", precision="auto", activation="tanh", recurrent_activation="sigmoid")
    return Scan(case, None, scan.capability, seed)


def _drawn_tilings(r: random.Random, units: int) -> Iterator[Tiling]:
    for _ in range(8):
        block_b, shared_gates, exchange = (
            r.choice([16, 16, 32, 64]),
            r.choice([0, 0, 1, 2, 3]),
            r.choice(tilings.EXCHANGES),
        )
        if exchange == tilings.NO_EXCHANGE:
            whole = next_power_of_two(units)
            yield Tiling(
                block_b, whole, 1, r.choice([w for w in (1, 2, 4, 8) if 8 * w <= whole]), exchange, shared_gates
            )
        else:
            block_h = r.choice([16, 16, 32])
            yield Tiling(block_b, block_h, r.choice([1, 2, 4]), r.choice([1, 1, 2]), exchange, shared_gates)


def draw_config(r: random.Random, units: int) -> LaunchConfig | None:
    """Return a configuration for so many units, or None for the one that the device's table or the formula gives."""
    schedule = r.choice(["single", "persistent", "persistent", "persistent", "steps", None])
    if schedule is None:
        return None
    block_b, num_warps = r.choice([16, 16, 32, 64]), r.choice([1, 2, 4, 8])
    if schedule == "single":
        whole = next_power_of_two(units)
        return LaunchConfig("single", block_b, whole, whole, num_warps)
    return LaunchConfig(
        schedule, block_b, r.choice([16, 16, 32]), r.choice([16, 32, 64]), num_warps
    )  # fmt: skip


def delete_barriers() -> int:
    """Delete each barrier of some compiled scans; print those that are not missed, and return the exit status."""
    case = Case(3, 3, 3, 32, "bfloat16", reset_after=False)
    configs = [
        LaunchConfig("single", 16, 32, 32, 4),
        *(LaunchConfig("persistent", 16, 16, 32, warps) for warps in (1, 2)),
        LaunchConfig("steps", 16, 16, 32, 2),
    ]
    deleted, not_missed = 0, []
    for config in configs:
        scan, texts = Scan(case, config), []
        right, _ = run(scan, lambda text, texts=texts: texts.append(text) or text)
        for text in texts:
            lines, name = text.split("\n"), parse(text).name
            barriers = [i for i, line in enumerate(lines) if re.fullmatch(r"\s*bar\.(warp\.)?sync\s.*", line)]
            for i in barriers:
                without = "\n".join(lines[:i] + [""] + lines[i + 1 :])
                if not is_missed(scan, lambda t, text=text, without=without: without if t == text else t, right):
                    not_missed.append(f"{config} {name}: PTX line {i + 1}")
            deleted += len(barriers)
            print(f"{config} {name}: {len(barriers)} barriers", flush=True)
    print(*not_missed, f"{deleted} barriers deleted, {len(not_missed)} not missed", sep="\n")
    return 1 if 10 * len(not_missed) > deleted else 0


def is_missed(scan: Scan, edit: Callable[[str], str], right: dict[str, Tensor]) -> bool:
    """Return whether an edit is an error or a wrong result in one of five orders: a loop may not come in each."""
    for seed in range(5):
        try:
            found, _ = run(replace(scan, seed=seed), edit)
        except (RaceError, AccessError):
            return True
        if not all(torch.equal(found[name], value) for name, value in right.items()):
            return True
    return False


def table_scans(units: int) -> list[Scan]:
    """Return a call for each entry of the shipped tables with at most `units` units."""
    scans = []
    for path in sorted(choices.SHIPPED.glob("*.json")):
        capability = int(path.name.partition("-")[0].removeprefix("sm_"))
        table = choices.load(path)
        for entry in itertools.chain.from_iterable(table.groups.values() if table is not None else ()):
            key = entry.key
            if key.units <= units and (capability < 100 or entry.config.block_b < 64):
                case = Case(
                    entry.config.block_b + 3, 2, 3, key.units, key.dtype, mask="masked" in key.flags,
                    reset_after="reset_before" not in key.flags, recurrent_dropouts=3 * ("dropout" in key.flags),
                    precision=key.precision if key.dtype == "float32" else "auto",
                )  # fmt: skip
                scans.append(Scan(case, {key.kernel: entry.config}, capability))
    return scans


def check_all(scans: Iterable[Scan | ResidentScan]) -> int:
    """Run calls, print the failures, and return their number."""
    tried, failures, instructions, begin = Counter(), 0, 0, time.monotonic()
    for scan in scans:
        truth, _ = truth_and_oracle(scan.case)
        if not all(value.isfinite().all() and value.abs().max() < 1e4 for value in truth.values() if value.numel()):
            continue  # nothing to compare with
        tried[_kind(scan)] += 1
        try:
            done = check_resident(scan) if isinstance(scan, ResidentScan) else check(scan)
            instructions += done.instructions
        except (AssertionError, RuntimeError, NotImplementedError, ValueError) as error:
            failures += 1
            print(f"{scan!r}\n  {type(error).__name__}: {error}", flush=True)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(tried.items()))
    print(f"{tried.total()} calls ({counts}), {instructions} instructions in {time.monotonic() - begin:.0f} s")
    print(f"{failures} failures")
    return failures


def _kind(scan: Scan | ResidentScan) -> str:
    if isinstance(scan, ResidentScan):
        return f"resident {scan.forward.exchange}"
    if scan.case.heads > 1:
        return "of several heads"
    return scan.config.schedule if isinstance(scan.config, LaunchConfig) else "of a table or the formula"


def drawn(first: int, minutes: float, most: int | None) -> Iterator[Scan | ResidentScan]:
    """Draw calls from seed `first` on, until the time is over or there were `most`."""
    end = time.monotonic() + 60 * minutes
    for number in itertools.count() if most is None else range(most):
        if time.monotonic() > end:
            return
        if number % 6 == 5:
            yield draw_heads(first + number)
            continue
        resident = draw_resident(first + number) if number % 2 else None
        yield draw(first + number) if resident is None else resident


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--count", type=int, help="stop after so many calls")
    parser.add_argument("--seed", type=int, help="default: from the clock; printed")
    parser.add_argument("--barriers", action="store_true", help="delete each barrier of some compiled scans")
    parser.add_argument("--tables", type=int, metavar="UNITS", help="run the entries of the shipped tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    warnings.simplefilter("ignore")
    if args.barriers:
        return delete_barriers()
    if args.tables is not None:
        return 1 if check_all(table_scans(args.tables)) else 0
    first = random.randrange(10**9) if args.seed is None else args.seed
    print(f"seed {first}", flush=True)
    return 1 if check_all(drawn(first, args.minutes, args.count)) else 0


if __name__ == "__main__":
    sys.exit(main())
