"""Modules that pytest leaves out when it looks for doctests: those whose library is not installed."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("onnxscript") else ["tritongru/tools/onnx_scan.py", "tritongru/tools/onnx_translate.py"]
)
