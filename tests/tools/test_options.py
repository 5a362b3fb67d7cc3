"""Wrong numbers on the command line: one line on stderr that names the option and the value, and status 2."""

from __future__ import annotations

import pytest
import torch

from tritongru.__main__ import main
from tritongru.tools import options
from tritongru.tools.oracle import compare
from tritongru.tools.oracle.cases import Case, make_arguments
from tritongru.tools.tune.sweep import list_problems

ABOVE = str(10**9)
COUNTS = ["compare --units", "compare --batch", "compare --time", "demo --seeds", "demo --epochs", "bench --threads",
          "tune --units", "tune --batch", "tune --processors", "tune --jobs"]  # fmt: skip
SPANS = ["compare --timeout", "bench --budget", "tune --seconds", "tune --minutes"]
# Options for which 0 has a meaning.
FROM_ZERO = ["compare --input-size", "bench --seconds", "tune --depth"]
WRONG = [
    *((option, value) for option in COUNTS for value in ("0", "-1", "1.5", "", ABOVE, "abc")),
    *((option, value) for option in SPANS for value in ("0", "-1", "nan", "inf", ABOVE, "abc")),
    *((option, value) for option in FROM_ZERO for value in ("-1", ABOVE, "abc")),
    *((option, value) for option in ("compare --seed",) for value in ("-1", "1e3", "9" * 30, "abc")),
    *((f"compare --{kind}-dropouts", value) for kind in ("input", "recurrent") for value in ("2", "-1", ABOVE, "abc")),
    *((f"{command} --device", value) for command in ("compare", "bench", "demo") for value in ("abc", "cuda:99", "0x")),
    ("compare --activation", "3"),
    *(("compare --heads", value) for value in ("0", "-1", "2.5", ABOVE, "abc")),
    *(("compare --gradient-clip", value) for value in ("-1", "nan", "abc")),
]


def assert_one_line(capsys, command: list[str]) -> str:
    """Assert that the command prints one line on stderr and nothing else, and ends with 2; return the line."""
    try:
        status = main(command)
    except SystemExit as done:
        status = done.code
    printed = capsys.readouterr()
    assert status == 2 and not printed.out
    assert printed.err.endswith("\n") and printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize("option, value", WRONG, ids=[f"{option}={value}" for option, value in WRONG])
def test_a_wrong_number_is_one_line(capsys, option: str, value: str) -> None:
    command, name = option.split()
    line = assert_one_line(capsys, [command, f"{name}={value}"])
    assert name in line and repr(value).strip("'") in line


@pytest.mark.parametrize("sizes", ["0,1,1,1", "1,-1,1,1", f"1,1,1,{ABOVE}", f"{ABOVE},1,1,1", "a,b,c,d", "1,2,3"])
def test_sizes_of_the_benchmark(capsys, tmp_path, sizes: str) -> None:
    line = assert_one_line(capsys, ["bench", f"--sizes={sizes}", "--csv", str(tmp_path / "bench.csv")])
    assert "sizes" in line and sizes in line


def test_no_command_and_an_unknown_one(capsys) -> None:
    assert "COMMAND" in assert_one_line(capsys, [])
    assert "nonsense" in assert_one_line(capsys, ["nonsense"])
    assert "--nonsense" in assert_one_line(capsys, ["info", "--nonsense"])


@pytest.mark.parametrize(
    "given, said",
    [("--heads=2", "`heads` must divide the number of units, 9, got 2"),
     ("--heads=3 --layer-norm=joint", "`layer_norm`='joint' was given with heads=3"),
     ("--layer-norm=joint --no-reset-after", "`layer_norm`='joint' needs reset_after=True")],
)  # fmt: skip
def test_a_comparison_of_options_that_do_not_go_together(capsys, given: str, said: str) -> None:
    assert said in assert_one_line(capsys, ["compare", *given.split()])


def test_a_comparison_of_several_heads(capsys) -> None:
    assert main(["compare", "--heads", "3", "--backends", "eager", "reference", "--device", "cpu"]) == 0
    assert "heads=3" in capsys.readouterr().out


def test_a_comparison_larger_than_the_memory(capsys, monkeypatch) -> None:
    """Each number is in its range, but not all together; the limit is the device's memory."""
    monkeypatch.setattr(options, "memory_of", lambda place: 2**30)
    line = assert_one_line(capsys, ["compare", "--backends", "eager", "--device", "cpu", "--units", "65536"])
    assert "--units 65536" in line and "GiB" in line
    line = assert_one_line(capsys, ["compare", "--backends", "eager", "--device", "cpu", "--time", "1000000"])
    assert "--time 1000000" in line
    assert main(["compare", "--backends", "eager", "--device", "cpu"]) == 0
    monkeypatch.setattr(options, "memory_of", lambda place: None)
    assert main(["compare", "--backends", "eager", "--device", "cpu"]) == 0


def test_the_memory_of_this_machine() -> None:
    there = options.memory_of(torch.device("cpu"))
    assert there is None or there > 2**28
    small, large = (compare.memory_needed(Case(units=units)) for units in (8, 800))
    assert small < 2**20 < large


def test_numbers_that_do_not_come_from_the_command_line() -> None:
    with pytest.raises(ValueError, match="units.*got 0"):
        make_arguments(Case(units=0))
    with pytest.raises(ValueError, match="`batch`.*1000000000"):
        list(list_problems([8], [10**9], "float32", ("ieee",), ("forward",), ((),)))


@pytest.mark.parametrize(
    "options", [["--verify", "no.json"], ["--verify", "wrong"], ["--plot", "no.csv"], ["--plot", "wrong"], ["--repair"]]
)
def test_tune_says_in_one_line_what_cannot_be_done(tmp_path, capsys, options: list[str]) -> None:
    (tmp_path / "wrong").write_text("{}")
    given = [str(tmp_path / option) if not option.startswith("--") else option for option in options]
    assert main(["tune", *given]) == 2
    assert capsys.readouterr().err.startswith("tune: ")
