"""The ways a GRU call can be computed, one folder each."""
