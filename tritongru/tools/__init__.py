"""Tools around the layer: what runs here, the comparison with the oracle, tuning, benchmarks, conversion, the demo."""
