"""The sweep over launch configurations, and what it asks: compilers, clocks, a model of a step."""
