"""Keras's own tests, which its package ships, with our class where they say `layers.GRU`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras3_pairs
import pytest

FOLDER = Path(keras3_pairs.keras.__file__).parent / "src" / "layers" / "rnn"
FILES = ["gru_test.py", "bidirectional_test.py", "rnn_test.py", "time_distributed_test.py", "dropout_rnn_cell_test.py"]
# It makes a layer with use_cudnn=True, which ours refuses.
REFUSED = {"test_keeps_use_cudnn"}


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / FILES[0]).exists(), reason="this package of Keras has no tests")
def test_keras_own_tests_pass_with_our_class():
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "swap_gru", "-c", os.devnull, "-p", "no:cacheprovider",
         "--rootdir", str(FOLDER), *(str(FOLDER / file) for file in FILES)],
        env=dict(os.environ, PYTHONPATH=path, KERAS_BACKEND="torch"),
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    failed = set(re.findall(r"^FAILED \S*::(\w+)", done.stdout, re.MULTILINE))
    assert failed == REFUSED, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 40
