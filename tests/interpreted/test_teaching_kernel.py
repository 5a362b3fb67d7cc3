"""The kernel that the docs teach with computes the GRU."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "teaching_kernel.py"


def test_it_equals_the_oracle(capsys) -> None:
    spec = importlib.util.spec_from_file_location("teaching_kernel", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() < 1e-6
    assert "oracle" in capsys.readouterr().out
