"""From which step on nothing happens to a row any more: what lets a batch tile end before the sequence does.

    stop_b = 1 + the last step, in the order of processing, at which row b is unmasked or reset; 0 if there is none

"The last" is the mask's, so holes before it are no matter. A reset counts because it replaces the state.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "B"])
def last_steps_kernel(
    mask, resets, stops, T, B, REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """Write the stops of BLOCK_B rows.

    | pointer | shape, contiguous | dtype |
    |---|---|---|
    | mask, resets | (T,B), or None for resets | uint8 |
    | stops | (B,) | int32 |
    """
    o_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    m_b = o_b < B
    b_stop = tl.zeros((BLOCK_T, BLOCK_B), tl.int32)
    for begin in range(0, T, BLOCK_T):
        step = begin + tl.arange(0, BLOCK_T)
        t = T - 1 - step if REVERSE else step
        m_tb = (step < T)[:, None] & m_b[None, :]
        o_tb = t.to(tl.int64)[:, None] * B + o_b[None, :]
        active = tl.load(mask + o_tb, mask=m_tb, other=0) != 0
        if resets is not None:
            active = active | (tl.load(resets + o_tb, mask=m_tb, other=0) != 0)
        b_stop = tl.maximum(b_stop, tl.where(active, step[:, None] + 1, 0))
    tl.store(stops + o_b, tl.max(b_stop, 0), mask=m_b)
