"""A call of the GRU, from what the caller said to the canonical form that backends take.

Arguments  what the caller said                                                  arguments.py
Call       the same, checked, and what follows from it without its data          check.py
Problem    the tensors in canonical form, and what a backend is specialised on   problem.py
"""
