"""Modules that pytest leaves out when it looks for doctests: those whose library is not installed, or too old."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("onnxscript") else ["tritongru/tools/onnx/scan_node.py", "tritongru/tools/onnx/translate.py"]
)
# Triton has them from 3.4 on.
if not find_spec("triton") or not find_spec("triton.knobs"):
    collect_ignore += ["tests/long/emulate.py", "tests/emulator/driver.py", "tests/emulator/scans.py"]
