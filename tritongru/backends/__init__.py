"""What computes a call: a folder or a file for each way, with one interface.

    reasons_against(signature)                                  why it cannot run a call
    run_forward(inputs, variant, ...), run_backward(...)        the scan, and the gradients of its inputs

"triton", "numba" and "eager" are reached through the operators (`operators.py`), whose second derivatives are in
`gradients.py`; "aten" is torch's own GRU. The reference needs no backend's form.
"""
