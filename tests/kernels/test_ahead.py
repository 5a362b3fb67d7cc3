"""Every configuration the formula chooses, compiled for real targets without a device, within its budget."""

import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
from tritongru.backends.triton import ahead  # noqa: E402
from tritongru.backends.triton.kernels import backward, exchange, forward, gates, norms, probe, product, stops  # noqa: E402
from tritongru.call.problem import Variant  # noqa: E402
from tritongru.tuning import configs  # noqa: E402

RELEASE = tuple(map(int, triton.__version__.split(".")[:2]))
# Bytes that a program may put away before its time loop and fetch after it. With other versions one or two do.
PUT_AWAY = 0 if RELEASE in ((3, 7), (3, 8)) else 16
UNITS = (9, 64, 100, 128, 256, 1024, 2048)
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}


def config_for(target, units, dtype, batch=16, has_dropout=False):
    gpu, shared = ahead.TARGETS[target]
    return configs.choose(
        units,
        batch,
        dtype.itemsize,
        configs.Device(PROCESSORS[target], shared, warp_size=gpu.warp_size),
        has_dropout,
    )


def needs_linker(target):
    if target.startswith("gfx") and RELEASE < (3, 6) and not Path("/opt/rocm/llvm/bin/ld.lld").exists():
        pytest.skip("Triton links for AMD devices without ROCm from 3.6 on")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    "target, units",
    [(target, units) for target in PROCESSORS for units in UNITS if target == "sm_90" or units in (100, 256, 2048)],
    ids=str,
)
def test_budget(target, units, dtype, direction):
    needs_linker(target)
    report = ahead.compile_scan(direction, target, config_for(target, units, dtype), units, dtype)
    if RELEASE < (3, 6):
        # Four of these programs fetch one value from local memory at each step.
        assert report.in_loop <= 1 and report.violations()[int(report.in_loop) :] == []
        return
    assert report.violations() == [] and report.spills <= PUT_AWAY


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "target, units, batch, blocks",
    [
        ("sm_90", 256, 128, (16, 16)),
        ("sm_90", 512, 128, (16, 32)),
        ("sm_90", 512, 256, (32, 32)),
        ("sm_90", 1024, 64, (16, 32)),
        ("sm_90", 1536, 32, (32, 16)),
        ("sm_80", 512, 128, (32, 32)),
        ("sm_80", 1024, 16, (16, 16)),
    ],
)
def test_budget_of_many_rows(target, units, batch, blocks, direction):
    """All rows run at once, without spills; the shared memory is what the formula counts on."""
    config = config_for(target, units, torch.bfloat16, batch)
    assert config.schedule == "persistent" and (config.block_b, config.block_h) == blocks
    report = ahead.compile_scan(direction, target, config, units)
    planes = 1 if direction == "forward" else 3
    counted = config.weight_bytes(units, 2) + configs.operand_bytes(config, units, 2, planes)
    if RELEASE >= (3, 9):
        # It keeps one chunk at a time in shared memory, and four of these programs fetch values from local memory.
        assert report.shared <= counted and report.spills <= 48
        assert report.violations()[bool(report.in_loop) :] == []
        return
    assert report.violations() == [] and report.shared == counted


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "target, units, dtype, batch",
    [
        ("sm_90", 4096, torch.bfloat16, 64),
        ("sm_90", 4001, torch.bfloat16, 16),
        ("sm_90", 2048, torch.float32, 16),
        ("gfx942", 1024, torch.bfloat16, 16),
        ("sm_80", 2048, torch.float16, 128),
    ],
    ids=str,
)
def test_budget_where_weights_are_streamed(target, units, dtype, batch, direction):
    needs_linker(target)
    config = config_for(target, units, dtype, batch)
    assert config.schedule == "streamed"
    report = ahead.compile_scan(direction, target, config, units, dtype)
    assert report.violations() == [] and report.weights_in_loop


@pytest.mark.parametrize(
    "features",
    [
        {"variant": Variant(reset_after=False)},
        {"mask": True, "resets": True},
        {"drops": 3, "mask": True},
        {"variant": Variant(reverse=True, reset_gate_first=True)},
        {"variant": Variant("selu", "hard_sigmoid")},
        {"crowded": True, "mask": True},
    ],
    ids=lambda features: "-".join(f"{name}={value}" for name, value in features.items()),
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_budget_of_every_feature(direction, features):
    config = config_for("sm_90", 256, torch.float16, has_dropout="drops" in features)
    assert ahead.compile_scan(direction, "sm_90", config, 256, torch.float16, **features).violations() == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "target, units, dtype, kind",
    [
        ("sm_90", 128, torch.bfloat16, "joint"),
        ("sm_90", 64, torch.float32, "separate"),
        ("sm_90", 50, torch.float32, "joint"),
        ("sm_80", 128, torch.float16, "separate"),
        ("sm_90", 100, torch.bfloat16, "joint"),
        ("sm_80", 100, torch.float16, "joint"),
        ("sm_100", 65, torch.float16, "separate"),
        ("gfx942", 64, torch.bfloat16, "joint"),
    ],
    ids=str,
)
def test_budget_of_a_norm(target, units, dtype, kind, direction):
    needs_linker(target)
    gpu, shared = ahead.TARGETS[target]
    device = configs.Device(PROCESSORS[target], shared, warp_size=gpu.warp_size)
    config = configs.choose_with_norm(units, dtype.itemsize, device)
    features = dict(drops=3, mask=True) if units > 64 else {}
    report = ahead.compile_scan(direction, target, config, units, dtype, variant=Variant(layer_norm=kind), **features)
    assert report.violations() == []


def test_chunks_are_loaded_before_the_first_is_multiplied(monkeypatch):
    """A product waits at a barrier that no load passes: loads between products would each cost their full latency."""
    texts, compile_ = [], ahead.triton.compile
    monkeypatch.setattr(ahead.triton, "compile", lambda *a, **k: texts.append(compile_(*a, **k)) or texts[-1])
    ahead.compile_scan("forward", "sm_90", configs.LaunchConfig("persistent", 16, 16, 64), 256)
    lines = texts[0].asm["ttgir"].splitlines()
    loads = [i for i, line in enumerate(lines) if re.search(r"tt\.load.*(cacheModifier|cache_modifier) = cg", line)]
    assert len(loads) == 4
    assert max(loads) < next(i for i, line in enumerate(lines) if "tt.dot " in line)


def test_the_check_sees_spills_in_the_loop():
    report = ahead.compile_scan("forward", "sm_90", configs.LaunchConfig("persistent", 64, 64, 64, 2), 128)
    assert report.spills > 100 and report.in_loop > 10
    assert any("inside the time loop" in reason for reason in report.violations())


def test_spills_outside_of_loops_do_not_count():
    text = """
        /*0010*/ STL [R1], R6 ;
.L_x_0:
        /*0020*/ LDG.E R6, [R2] ;
        /*0030*/ @P0 BRA `(.L_x_1) ;
        /*0040*/ {} ;
.L_x_1:
        /*0050*/ @!P1 BRA P2, `(.L_x_0) ;
        /*0060*/ LDL.LU R8, [R1] ;
.L_x_2:
        /*0070*/ BRA `(.L_x_2);
"""
    assert ahead.count_spills_in_loops(text.format("NOP")) == 0
    assert ahead.count_spills_in_loops(text.format("LDL R7, [R1+0x8]")) == 1


def test_the_check_sees_weights_in_the_loop():
    """The streaming schedule reads its weights at every step, and the report says so."""
    config = configs.LaunchConfig("steps", 16, 32, 32, 4)
    assert ahead.compile_scan("forward", "sm_90", config, 512).weights_in_loop


def test_the_check_sees_too_much_shared_memory():
    config = configs.LaunchConfig("persistent", 16, 64, 64, 8)
    broken = ahead.compile_scan("backward", "sm_90", config, 1024).violations()
    assert any("shared memory" in reason for reason in broken)


def narrow_products(ttir: str) -> list[str]:
    """Return the 32-bit products of what grows with T or B and another size: offsets that wrap past 2^31."""
    long, found = {"%T", "%B", "%step_begin", "%step_end"}, []
    for line in ttir.splitlines():
        if match := re.search(r"scf\.for (%\w+) = ", line):
            long.add(match[1])
        if match := re.match(r"\s*(%[\w:]+)(?:, %[\w:]+)* = (.*)", line):
            operands = set(re.findall(r"%\w+", match[2]))
            # A value that is 64 bits wide is safe, whatever it came from.
            if operands & long and re.search(r"(: |x|-> )i32\b[>)]*(?: loc.*)?$", match[2]):
                long.add(match[1].split(":")[0])
                if match[2].startswith("arith.muli") and not re.search(r"%c\d", match[2]):
                    found.append(line.strip())
    return found


@pytest.mark.parametrize("norm", [None, "joint"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_offsets_pass_2_to_the_31(direction, norm, monkeypatch):
    """B * T * U of real batches passes 2^31, where a product of 32 bits would wrap."""
    texts, compile_ = [], ahead.triton.compile
    monkeypatch.setattr(ahead.triton, "compile", lambda *a, **k: texts.append(compile_(*a, **k)) or texts[-1])
    config = configs.LaunchConfig("persistent", 16, 16, 64, 8)
    if norm is not None:
        config = configs.LaunchConfig("single", 16, 64, 64, 8)
    features = dict(mask=True, resets=True, fresh=True, drops=3, crowded=True, variant=Variant(layer_norm=norm))
    ahead.compile_scan(direction, "sm_90", config, 64, torch.bfloat16, **features)
    ttir = texts[0].asm["ttir"]
    if RELEASE < (3, 6):
        assert "%arg0: " in ttir
        pytest.skip("this Triton's text has no names of arguments")
    assert "%T: i32" in ttir and "arith.extsi" in ttir
    assert narrow_products(ttir) == []


def test_a_narrow_product_is_seen():
    text = """
    %t = arith.subi %T, %c1 : i32 loc(#loc1)
    %wide = arith.extsi %t : i32 to i64 loc(#loc2)
    %fine = arith.muli %wide, %size : i64 loc(#loc3)
    scf.for %step = %c0 to %n step %c1  : i32 {
      %o = arith.muli %step, %size : i32 loc(#loc4)
      %p = arith.muli %U, %size : i32 loc(#loc4)
    """
    assert len(narrow_products(text)) == 1


KERNELS = {"forward": forward.gru_forward_kernel, "backward": backward.gru_backward_kernel}


@pytest.mark.parametrize(
    "schedule, norm", [("single", None), ("persistent", None), ("steps", None), ("single", "joint")]
)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("direction", KERNELS)
def test_the_table_of_a_kernel_says_what_a_launch_gives(direction, reset_after, schedule, norm):
    """Its docstring's column of types, and that of what None stands for, against the arguments of whole scans."""
    rows = re.findall(r"^ *\| (.+?) \| .+ \| (.+?) \| (.*?) ?\|$", KERNELS[direction].fn.__doc__, re.M)[1:]
    types = {name: (dtype, bool(none.strip())) for names, dtype, none in rows for name in names.split(", ")}
    config = configs.LaunchConfig(schedule, 16, 64 if schedule == "single" else 16, 64 if schedule == "single" else 16)
    features = dict(mask=True, resets=True, fresh=True, drops=3, crowded=True)
    for on in ({}, features):
        variant, dtype = Variant(reset_after=reset_after, layer_norm=norm), torch.float16
        _, given = ahead.example_arguments(direction, config, 64, dtype, variant, **on)
        pointers = {name: value for name, value in given.items() if not isinstance(value, int) and name != "first_tile"}
        assert pointers.keys() == types.keys()
        for name, value in pointers.items():
            stated, may_be_none = types[name]
            assert may_be_none if value is None else str(value.dtype)[6:] in stated.replace("io", "float16"), name


def test_no_list_of_arguments_is_long():
    modules = (backward, exchange, forward, gates, norms, probe, product, stops)
    functions = {
        f.__name__: f for module in modules for f in vars(module).values() if isinstance(f, triton.JITFunction)
    }
    counts = {name: len(function.arg_names) for name, function in functions.items()}
    assert len(counts) > 20
    assert {name: n for name, n in counts.items() if n > (30 if name.endswith("_kernel") else 24)} == {}


@pytest.mark.parametrize("name, value", [("direction", "sideways"), ("target", "sm_1")])
def test_bad_arguments(name, value):
    config = configs.LaunchConfig("single", 16, 16, 16)
    arguments = {"direction": "forward", "target": "sm_90", "config": config, "units": 9} | {name: value}
    with pytest.raises(ValueError, match=f"`{name}`.*{value}"):
        ahead.compile_scan(**arguments)
