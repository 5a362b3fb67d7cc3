"""Every backend judged by the oracle: random calls, their results, and how far these may lie apart."""
