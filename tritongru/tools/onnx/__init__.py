"""GRU layers as ONNX: `export` writes one layer, `translation_table` is for models that have some."""

from .exporter import export, translation_table

__all__ = ["export", "translation_table"]
