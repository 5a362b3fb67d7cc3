"""The whole GRU, forward, in one screen of Triton: what the package's kernels are before they are made fast.

    z, r = sigmoid(gx_z + h R_z + c_z), sigmoid(gx_r + h R_r + c_r)
    n = tanh(gx_n + r * (h R_n + c_n));   h = z h + (1 - z) n

One program owns BLOCK_B rows of the batch and all units. The three blocks of the recurrent weights are read once,
before the loop over time, and the state never leaves the program: a step touches its inputs and its output alone.
What the package's kernels add (tritongru/backends/triton/kernels): several programs that share the units and exchange
the state, chunks of the product, masks, resets, dropout, the other reset convention, saved gates, and the way back.

Run it without a GPU: TRITON_INTERPRET=1 python examples/teaching_kernel.py
"""

import torch
import triton
import triton.language as tl


@triton.jit
def tanh(a):
    return 2.0 * tl.sigmoid(2.0 * a) - 1.0


@triton.jit
def gru_kernel(gx, weights, bias, state, outputs, T, B, U, BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr):
    """Run all steps of BLOCK_B rows: gx (T,B,3U), weights (U,3U), bias (3U,), state (B,U), outputs (T,B,U); z, r, n."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.arange(0, BLOCK_U)
    inside = (rows < B)[:, None] & (units < U)[None, :]
    square = (units < U)[:, None] & (units < U)[None, :]
    p_weights = weights + units[:, None] * 3 * U + units[None, :]
    R_z = tl.load(p_weights, mask=square, other=0.0)
    R_r = tl.load(p_weights + U, mask=square, other=0.0)
    R_n = tl.load(p_weights + 2 * U, mask=square, other=0.0)
    c_z = tl.load(bias + units, mask=units < U, other=0.0)
    c_r = tl.load(bias + U + units, mask=units < U, other=0.0)
    c_n = tl.load(bias + 2 * U + units, mask=units < U, other=0.0)
    h = tl.load(state + rows[:, None] * U + units[None, :], mask=inside, other=0.0)
    for t in range(T):
        p_x = gx + (t * B + rows[:, None]) * 3 * U + units[None, :]
        x_z = tl.load(p_x, mask=inside, other=0.0)
        x_r = tl.load(p_x + U, mask=inside, other=0.0)
        x_n = tl.load(p_x + 2 * U, mask=inside, other=0.0)
        z = tl.sigmoid(x_z + tl.dot(h, R_z, input_precision="ieee") + c_z)
        r = tl.sigmoid(x_r + tl.dot(h, R_r, input_precision="ieee") + c_r)
        n = tanh(x_n + r * (tl.dot(h, R_n, input_precision="ieee") + c_n))
        h = z * h + (1.0 - z) * n
        tl.store(outputs + (t * B + rows[:, None]) * U + units[None, :], h, mask=inside)


def gru(x, kernel, recurrent_kernel, bias, initial_state):
    """Return outputs (T,B,U) float32 for x (T,B,I), Keras's weights (I,3U), (U,3U), (2,3U) and a state (B,U)."""
    T, B, _ = x.shape
    U = recurrent_kernel.shape[0]
    gx = (x @ kernel + bias[0]).contiguous()
    outputs = torch.empty(T, B, U, device=x.device)
    block_u = max(16, triton.next_power_of_2(U))
    gru_kernel[(triton.cdiv(B, 16),)](
        gx, recurrent_kernel.contiguous(), bias[1].contiguous(), initial_state.contiguous(), outputs, T, B, U,
        BLOCK_B=16, BLOCK_U=block_u,
    )  # fmt: skip
    return outputs


def main() -> float:
    """Compare with the oracle in float64; return the largest difference."""
    import tritongru

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    T, B, I, U = 6, 19, 5, 20
    shapes = (T, B, I), (I, 3 * U), (U, 3 * U), (2, 3 * U), (B, U)
    arguments = [0.5 * torch.randn(shape, device=device) for shape in shapes]
    expected, _ = tritongru.gru(*(a.double() for a in arguments), time_major=True, backend="reference")
    error = (gru(*arguments) - expected).abs().max().item()
    print(f"largest difference from the oracle: {error:.1e}")
    return error


if __name__ == "__main__":
    main()
