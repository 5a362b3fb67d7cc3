"""Run the checks of one library in this process and write what they return. Started by run.py, once for each GRU.

python clients/one.py torchrl tritongru out.npz
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch


def run(name: str, gru: str) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Return the arrays, by "check/name", and for each check what it does, its seconds and its error, if it had one."""
    if gru == "tritongru":
        from tritongru.compat import GRU

        torch.nn.GRU = GRU
    module = importlib.import_module(f"checks.check_{name}")
    arrays, report = {}, {}
    for check in (value for value in vars(module).values() if inspect.isfunction(value)):
        if check.__module__ != module.__name__ or not check.__doc__:
            continue
        torch.manual_seed(0)
        np.random.seed(0)
        begin, error = time.perf_counter(), ""
        try:
            values = {key: np.asarray(torch.as_tensor(value).detach()) for key, value in check().items()}
            arrays |= {f"{check.__name__}/{key}": value for key, value in values.items()}
        except Exception as failure:  # Whatever a library raises is what this run is to report.
            error = name_failure(failure)
        report[check.__name__] = {"what": check.__doc__, "seconds": time.perf_counter() - begin, "error": error}
    return arrays, report


def name_failure(failure: Exception) -> str:
    """Return the class and the first line of a failure, without colours."""
    first = re.sub(r"\x1b\[[0-9;]*m", "", str(failure)).strip().splitlines()[:1]
    return ": ".join([type(failure).__name__, *(line.strip().rstrip(":") for line in first)])


def main() -> None:
    name, gru, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    root = Path(__file__).resolve().parent
    sys.path[:0] = [str(root), str(root.parent)]
    arrays, report = run(name, gru)
    np.savez(path, __report__=json.dumps(report), **arrays)


if __name__ == "__main__":
    main()
