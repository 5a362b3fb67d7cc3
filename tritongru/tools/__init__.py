"""Tools around the layer: what runs here, the comparison with the oracle, tuning, benchmarks, file formats, the demo."""
