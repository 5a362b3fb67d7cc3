"""Plausible bugs, each as (file of tritongru/, text, text with the bug, tests that must fail); see mutants.py."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old` occurs exactly once in `file`; `tests` are pytest's arguments, below tests/."""

    file: str
    old: str
    new: str
    tests: str


EAGER = "call/test_eager.py -k grid"
SHAPES = "call/test_eager.py -k shapes_and_dtypes"
LENGTHS = "torch/test_compat.py -k lengths_equal"
PACKING = "call/test_packing.py"
ONE_SCAN = "call/test_eager_members.py -k one_scan_is"
NORM = "call/test_layer_norm.py -k equals_the_oracle"
NUMBA_NORM = "numba_backend/test_numba_norms.py -k grid"
REPEATS = "numba_backend/test_numba_repeats.py"
SUMS = "numba_backend/test_numba_sums.py"
PANELS = "numba_backend/test_numba_packing.py"
FEW = "numba_backend/test_numba_oracle.py -k as_they_lie"
SHORT_SHARED = "numba_backend/test_numba_short_shared.py"
SHARED = "numba_backend/test_numba_shared.py"
UNPACKED = "numba_backend/test_numba_unpacked.py"
KERNEL_NORM = "interpreted/test_norm_kernels.py -k grid"
WIDE_NORM = "interpreted/test_norm_kernels.py -k have_a_mean"
CHUNKS = "call/test_eager.py -k chunk"
HALF = "call/test_eager.py -k half"
NO_STEPS = "call/test_eager.py -k no_steps"
ATEN = "call/test_eager.py -k aten"
FUZZ = "call/test_fuzz.py -k backends"
LAYER = "layers/test_keras_layer.py"
MASKS = "layers/test_keras_layer.py -k masks"
STATE = "layers/test_keras_layer.py -k state"
CARRIED = "layers/test_stateful.py"
COMPAT = "torch/test_compat.py"
STREAM = "torch/test_stream.py"
DISPATCH = "call/test_dispatch.py"
TORCH_CALLS = "call/test_aten.py"
CELLS = "interpreted/test_kernels.py -k zoneout"
FLAGS = "interpreted/test_kernels.py -k flags"
SIZES = "interpreted/test_kernels.py -k sizes"
ACTIVATIONS = "interpreted/test_kernels.py -k activations"
RECORDED = "interpreted/test_fuzz_kernels.py -k once_failed"
WAVES = "interpreted/test_exchange.py -k waves"
EXCHANGE = "interpreted/test_exchange.py"
EMULATED = "kernels/test_emulated.py -k published"
ROW_ORDER = "interpreted/test_row_order.py"
PADDING = "torch/test_compat.py -k padding"
ENLARGED = "call/test_third_opinions.py -k linear-tanh"
ONNX = "torch/test_onnx.py -k export_of_the"

MUTANTS = [
    # The eager scan.
    Mutant("backends/eager/layout.py", "(second, first) if variant.reset", "(first, second) if variant.reset", EAGER),
    Mutant("backends/eager/layout.py", "(drop[1], drop[0], drop[2]) if", "(drop[1], drop[0], drop[1]) if", EAGER),
    Mutant("backends/eager/short.py", "(second, first) if reset", "(first, second) if reset", "call/test_short.py"),
    Mutant("backends/eager/short.py", "reversed(range(T)) if variant.reverse else range(T)", "range(T)", "call/test_short.py"),
    Mutant("backends/eager/layout.py", "torch.float64 if dtype == torch.float64 else torch.float32", "dtype", HALF),
    Mutant("backends/eager/layout.py", "before.masked_fill(resets[begin:end, :, None], 0.0)", "before", EAGER),
    Mutant("backends/eager/layout.py", "T else after[begin + 1 : end + 1]", "T else after[begin:end]", CHUNKS),
    Mutant("backends/eager/layout.py", "yield (T - step, T - first) if reverse", "yield (first, step) if reverse", CHUNKS),
    Mutant("backends/eager/forward.py", "h.masked_fill(restarts[t], 0.0)", "h.masked_fill(restarts[t - 1], 0.0)", EAGER),
    Mutant("backends/eager/forward.py", "h = torch.where(restarts[t]", "h = torch.where(restarts[t - 1]", EAGER),
    Mutant("backends/eager/forward.py", "torch.where(mask[t, :, None], new, h", "torch.where(mask[t, :, None], new, new", EAGER),
    Mutant("backends/eager/forward.py", "torch.lerp(n, h, z", "torch.lerp(h, n, z", EAGER),
    Mutant("backends/eager/forward.py", "torch.cat((early[: 2 * U], torch.zeros_like(bias_n)))", "early", EAGER),
    Mutant("backends/eager/forward.py", "f(add(n, r * h_n, u_n))", "f(add(n, r * h, u_n))", EAGER),
    Mutant("backends/eager/forward.py", "add(gh_n, drop_rows(h, d_n), u_n)", "add(gh_n, drop_rows(h, d_z), u_n)", EAGER),
    Mutant("backends/eager/forward.py", "after.masked_fill(~mask[..., None], 0.0)", "after", EAGER),
    Mutant("backends/eager/forward.py", "found.masked_fill(found == T, -1)", "found", EAGER),
    Mutant("backends/eager/layout.py", "leaving[size:now] = rows[size:]", "pass", PACKING),
    Mutant("backends/eager/layout.py", "h0[here : steps.sizes[t]]", "h0[: steps.sizes[t] - here]", PACKING),
    Mutant("backends/eager/packing.py", "or a.resets is not None or a.drop", "or a.drop", PACKING),
    Mutant("backends/eager/packing.py", "~mask & (final < nowhere)", "~mask", PACKING),
    Mutant("backends/eager/packing.py", "last = T - lengths if rises", "last = T - 1 - lengths if rises", PACKING),
    Mutant("backends/eager/packing.py", "if variant.reverse == bool(rises) and", "if", PACKING),
    Mutant("backends/eager/forward.py", "index_copy_(0, packing.order, last)", "copy_(last)", PACKING),
    Mutant("backends/eager/forward.py", "rows[steps.starts[-1] :] = 0", "pass", PACKING),
    Mutant("backends/eager/backward.py", "d_last + d_repeated", "d_last", PACKING),
    Mutant("backends/eager/backward.py", "not restarts and sizes[before] == sizes[t]", "not restarts", PACKING),
    Mutant("backends/eager/backward.py", "self.dh = self.dh.masked_fill(restart, 0.0)", "pass", EAGER),
    Mutant("backends/eager/backward.py", "add_(self.dh.masked_fill(~restart, 0.0))", "mul_(1.0)", EAGER),
    Mutant("backends/eager/backward.py", "z.masked_fill(masked, 1.0)", "z.masked_fill(masked, 0.0)", EAGER),
    Mutant("backends/eager/backward.py", "da_r @ ut_r, d_r).addcmul_(dgh", "da_r @ ut_r, d_z).addcmul_(dgh", EAGER),
    Mutant("backends/eager/backward.py", "given = d_out.masked_fill(source < 0, 0.0)", "given = d_out", EAGER),
    Mutant("backends/eager/backward.py", "1 if self.variant.reverse else -1", "-1", EAGER),
    Mutant("backends/eager/sums.py", "h if self.variant.reset_after else h * r)", "h)", EAGER),
    Mutant("backends/eager/sums.py", "rows.n if rows.gh_n is None else rows.gh_n", "rows.n", EAGER),
    # The kernels and their launch.
    Mutant("backends/triton/kernels/product.py", "u + o_k[:, None].to(tl.int64) * s_chunk", "u + o_k[:, None].to(tl.int64) * U", SIZES),
    Mutant("backends/triton/kernels/product.py", "m_kh = (o_k < U)", "m_kh = (o_k < U - 1)", SIZES),
    Mutant("backends/triton/kernels/product.py", "p_u + C.GATE_Z * U", "p_u + C.GATE_R * U", SIZES),
    Mutant("backends/triton/kernels/forward.py", "m_b = o_b < B\n", "m_b = o_b < B - 1\n", SIZES),
    Mutant("backends/triton/kernels/forward.py", "b_new, 0.0 if C.ZERO_MASKED else b_y", "b_new, b_y", FLAGS),
    Mutant("backends/triton/kernels/forward.py", "if step_begin > 0:", "if step_begin > 1:", FLAGS),
    Mutant("backends/triton/kernels/forward.py", "SEPARATE:\n                tl.store(out + o_t + o_bh, b_y",
    "SEPARATE:\n                tl.store(out + o_t + o_bh, b_h", FLAGS),
    Mutant("backends/triton/kernels/forward.py", "p_fresh = fresh + t_next", "p_fresh = fresh + t", FLAGS),
    Mutant("backends/triton/kernels/forward.py", "resets + t_next.to", "resets + t.to", FLAGS),
    Mutant("backends/triton/kernels/forward.py", "drop + (C.DROPS - 1) * step_size", "drop", FLAGS),
    Mutant("backends/triton/kernels/product.py", "factor(drop + C.GATE_R * step_size,", "factor(drop + C.GATE_Z * step_size,", FLAGS),
    Mutant("backends/triton/kernels/forward.py", "+ b_r * b_g, C.ACT)", "+ b_g, C.ACT)", SIZES),
    Mutant("backends/triton/kernels/backward.py", "m_h = o_h < U\n", "m_h = o_h < U - 1\n", SIZES),
    Mutant("backends/triton/kernels/backward.py",
    "    t = step if C.REVERSE else T - 1 - step\n    o_t = t.to(tl.int64) * step_size + o_bh",
    "    t = T - 1 - step\n    o_t = t.to(tl.int64) * step_size + o_bh", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "b_dy = tl.where(kept, 0.0, b_dy)", "b_dy = b_dy * 1.0", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "b_dh = tl.where(again[:, None], 0.0, b_dh)", "b_dh = b_dh * 1.0", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "tl.where(kept, b_dh * b_z, b_dh)", "b_dh * b_z", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "a_r = a_r * d_r", "a_r = a_r * d_z", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "tl.store(y_carry + o_bh, b_dy", "tl.store(y_carry + o_bh, b_dh", FLAGS),
    Mutant("backends/triton/kernels/gates.py", "d = y * (1.0 - y)", "d = 1.0 - y", ACTIVATIONS),
    Mutant("backends/triton/kernels/gates.py", "tl.where((y > 0.0) & (y < 1.0), 0.2", "tl.where(y > 0.0, 0.2", RECORDED),
    Mutant("backends/triton/kernels/gates.py", "s < 0.0625", "s < 0.0", RECORDED),
    Mutant("backends/triton/kernels/gates.py", "tanh(0.5 * a) * (tl.exp(a) + 1.0)", "tl.exp(a) - 1.0", RECORDED),
    Mutant("backends/triton/kernels/gates.py", "e, tl.log(u) * (e / tl.where(rounded == 0.0, 1.0, rounded))", "e, tl.log(u)", RECORDED),
    Mutant("backends/triton/kernels/gates.py", "d = -expm1(-y)", "d = -expm1(y)", ACTIVATIONS),
    Mutant("backends/eager/layout.py", "h if m is None or not h.numel() else", "h if m is None else", RECORDED),
    Mutant("backends/triton/kernels/product.py", "k_n = k_n.to(C.DOT) * load_factor(drop, k, U, o_b, m_b, C).to(C.DOT)",
           "k_n = k_n * load_factor(drop, k, U, o_b, m_b, C)", RECORDED),
    Mutant("backends/triton/constants.py", "DOT=tl.float32 if interpreted", "DOT=tl.float32 if not interpreted", RECORDED),
    Mutant("backends/triton/scan.py", "contiguous(bias_n)", "bias_n", RECORDED),
    Mutant("backends/triton/scan.py", "first = T - 1 if variant.reverse else 0", "first = 0", FLAGS),
    Mutant("backends/triton/scan.py", "states[T if variant.reverse else 0]", "states[0]", FLAGS),
    Mutant("backends/triton/scan.py", "leaving[T - step if", "leaving[T - 1 - step if", FLAGS),
    Mutant("backends/triton/workspace.py", "tiles = -(-batch // config.block_b)", "tiles = max(1, batch // config.block_b)", SIZES),
    Mutant("backends/triton/scan.py", "B * U if fresh is not None and", "U if fresh is not None and", FLAGS),
    # The exchange.
    Mutant("backends/triton/kernels/exchange.py", "while (ahead < 0) & (spins", "while (ahead + 1 < 0) & (spins", EXCHANGE),
    Mutant("backends/triton/kernels/exchange.py", "patience = tl.where(ahead < 0, 0, patience)", "patience += 0", EXCHANGE),
    # What only compiled code shows.
    Mutant("backends/triton/kernels/exchange.py", "        tl.debug_barrier()\n        tl.atomic_add(", "        tl.atomic_add(",
           EMULATED),
    Mutant("backends/triton/kernels/exchange.py", "p_counter, 1, sem=\"release\"", "p_counter, 1, sem=\"relaxed\"", EMULATED),
    Mutant("backends/triton/kernels/exchange.py", "p_counter, 0, sem=\"acquire\") - target\n        spins",
           "p_counter, 0, sem=\"relaxed\") - target\n        spins", EMULATED),
    Mutant("backends/triton/kernels/probe.py", "o_slot = (round & 1) * slot_size + tile", "o_slot = tile", EMULATED),
    Mutant("backends/triton/kernels/stops.py", "tl.where(active, step[:, None] + 1, 0)", "tl.where(active, step[:, None], 0)", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "tl.maximum(step_begin, T - stop)", "tl.maximum(step_begin, T - stop + 1)", FLAGS),
    Mutant("backends/triton/kernels/backward.py", "tl.store(faults + i_b, 1)", "tl.store(faults + i_b, 0)", EXCHANGE),
    Mutant("backends/triton/kernels/forward.py", "i_b += first_tile", "i_b += 0", WAVES),
    Mutant("backends/triton/kernels/backward.py", "i_b += first_tile", "i_b += 0", WAVES),
    Mutant("backends/triton/launching.py", "min(at_once, tiles - tile)", "at_once", WAVES),
    # From arguments to the canonical form.
    Mutant("call/padding.py", "return torch.ops.tritongru.valid_steps(lengths, steps)\n    return torch.arange(steps,",
           "return torch.ops.tritongru.valid_steps(lengths, steps)\n    return torch.arange(-1, steps - 1,", LENGTHS),
    Mutant("call/problem.py", "within if mask is None else mask & within", "within", EAGER),
    Mutant("call/problem.py", "parts = zip(_in_order_of_weights(masks, variant), w", "parts = zip(masks, w", EAGER),
    Mutant("call/problem.py", "torch.stack(_in_order_of_weights(a.recurrent_dropout, variant))", "torch.stack(a.recurrent_dropout)", EAGER),
    Mutant("call/problem.py", "            fresh = h0\n", "            fresh = None\n", SHAPES),
    Mutant("call/problem.py", "fresh = a.by_time(fresh)", "fresh = fresh[0].expand(x.shape[0], -1, -1)", SHAPES),
    Mutant("call/problem.py", "bias_x, bias_h = a.bias.unbind(0)", "bias_h, bias_x = a.bias.unbind(0)", EAGER),
    Mutant("call/tensors.py", "torch.bool else value != 0", "torch.bool else value == 1", FUZZ),
    Mutant("call/tensors.py", "low < 0 or high > time", "low < 0 or high > time + 1", "call/test_errors.py"),
    Mutant("call/problem.py", "bias_x, bias_h = None, a.bias", "bias_x, bias_h = a.bias, None", "call/test_gates.py"),
    # Zoneout and the clipped gradient of the state.
    Mutant("backends/eager/backward.py", "            d.z.mul_(keep)\n", "", "call/test_zoneout.py"),
    Mutant("backends/eager/backward.py", "torch.mul(1 - g.z, g.n - h", "torch.mul(1 - g.z, h - g.n", "call/test_zoneout.py"),
    Mutant("backends/eager/packing.py", "a.keep[packing.places]", "a.keep.flatten(0, 1)[: len(packing.shown)]", "call/test_zoneout.py"),
    Mutant("backends/eager/backward.py", "torch.where(self.mask[t, :, None], clipped, self.dh)", "clipped", "call/test_gradient_clip.py"),
    Mutant("backends/eager/backward.py", "sizes[t] and clip is None", "sizes[t]", "call/test_gradient_clip.py"),
    Mutant("call/zoneout.py", "x.new_full(shape, 1 - rate)", "x.new_full(shape[1:], 1 - rate)", "call/test_zoneout.py"),
    # Layer normalisation.
    Mutant("backends/eager/normalized.py", "torch.cat((bias_n, outside[: 2 * U]))", "torch.cat((bias_n, outside[U:]))", NORM),
    Mutant("backends/eager/normalized.py", "d - d.mean(-1, keepdim=True) - sums", "d - sums", NORM),
    Mutant("backends/eager/normalized.py", "torch.zeros_like(sums))", "torch.empty_like(sums))", NORM),
    Mutant("backends/eager/normalized.py", "(n, r, z) if variant", "(n, z, r) if variant", NORM),
    Mutant("backends/eager/sums.py", 'd_sums if self.variant.layer_norm == "joint" else d_projected', "d_projected", NORM),
    Mutant("backends/eager/sums.py", "candidate_last((d.recurrent * norms.sums).sum(0))", "(d.recurrent * norms.sums).sum(0)", NORM),
    Mutant("backends/numba/kernels/norms.py", "sum_lanes(square) / (3.0 * U)", "sum_lanes(square) / (3.0 * P)", NUMBA_NORM),
    Mutant("backends/numba/kernels/norms.py", "            store(gx, i + j, zero)\n", "", NUMBA_NORM),
    Mutant("backends/numba/kernels/norms.py", "of_scale = 2 * U if gate == 0 else at", "of_scale = at + U", NUMBA_NORM),
    Mutant("backends/numba/kernels/norms.py", "(load(d, o) - mean - get(", "(load(d, o) - get(", NUMBA_NORM),
    Mutant("backends/triton/kernels/norms.py", "tl.where(m_h[None, :], a_z - mean, 0.0)", "a_z - mean", KERNEL_NORM),
    Mutant("backends/triton/kernels/norms.py", "3.0 * C.COUNTED, tl.float32", "3.0 * C.BLOCK_H, tl.float32", WIDE_NORM),
    Mutant("backends/triton/kernels/norms.py", "m_h = tl.arange(0, C.BLOCK_H) < C.COUNTED", "m_h = m_h", WIDE_NORM),
    Mutant("backends/triton/widths.py", "(0, 0, 0, self.width - self.units)", "(0, 0, self.width - self.units, 0)", "interpreted/test_norm_kernels.py -k shapes"),
    Mutant("backends/triton/kernels/norms.py", "(e_r - mean - n_r * along)", "(e_r - mean)", KERNEL_NORM),
    Mutant("backends/triton/kernels/norms.py", "tl.load(scale + 3 * U + o_row", "tl.load(scale + 3 * U + o_b", KERNEL_NORM),
    Mutant("backends/triton/kernels/forward.py", "                    x = outside\n", "", KERNEL_NORM),
    Mutant("backends/triton/run.py", 'recurrent if variant.layer_norm == "joint" else (d_gx, d_gh_n)', "(d_gx, d_gh_n)", KERNEL_NORM),
    Mutant("backends/triton/norms.py", "spread[chunk] = rstd.view_as(spread[chunk])", "spread[:] = rstd[:B].view(B)", KERNEL_NORM),
    Mutant("backends/numba/backward.py", "a.drop is None and a.scale is None\n", "a.drop is None\n", NUMBA_NORM),
    Mutant("backends/numba/backward.py", "rows.w is None else gx @ rows.w", "rows.w is not None else gx @ rows.w", NUMBA_NORM),
    Mutant("backends/numba/short.py", "if not plain or a.scale is not None or", "if not plain or", NUMBA_NORM),
    # Heads.
    Mutant("call/heads.py", "(3, heads, width))[..., head, :]", "(heads, 3, width))[..., head, :, :]", "call/test_heads.py"),
    Mutant("call/heads.py", "value.unflatten(0, (3, heads, width))[:, head]", "value.unflatten(0, (heads, 3, width))[head]", "call/test_heads.py"),
    Mutant("call/heads.py", '"recurrent_dropout", "zoneout")', '"recurrent_dropout")', "call/test_heads.py"),
    # torch.func.vmap.
    Mutant("backends/transforms.py", 'value.dim() - 2 - (dim is not None) if name == "fresh"', '0 if name == "fresh"', "torch/test_mapping.py"),
    Mutant("backends/transforms.py", '"drop": 1, "keep": 1}', '"drop": 1}', "torch/test_mapping.py"),
    Mutant("backends/transforms.py", "(last, 1), (states, 2)", "(last, 1), (states, 1)", "torch/test_mapping.py"),
    Mutant("backends/transforms.py", "t.select(dim, member) for member", "t.select(dim, 0) for member", "torch/test_mapping.py"),
    Mutant("backends/transforms.py", "value = value.movedim(dim, 1)", "value = value.movedim(dim, 0)", "torch/test_mapping.py"),
    Mutant("backends/transforms.py", "zip(given, cotangents, strict=True)", "zip(given, cotangents[::-1], strict=True)", "torch/test_mapping.py -k differentiated"),
    Mutant("backends/mapping.py", "value.select(dim, member)", "value.select(dim, 0)", "torch/test_mapping.py"),
    Mutant("call/check.py", "kinds.count(TransformType.Grad) <= 1", "True", "torch/test_mapping.py -k no_rule"),
    # Zoneout and the bound in the kernels.
    Mutant("backends/triton/kernels/forward.py", "b_stays = 1.0 - b_takes * (1.0 - b_z)", "b_stays = b_takes * b_z", CELLS),
    Mutant("backends/triton/kernels/backward.py", "                g_z *= b_takes\n", "", CELLS),
    Mutant("backends/triton/kernels/backward.py", "b_z = 1.0 - b_takes * (1.0 - b_z)", "b_z = b_z", CELLS),
    Mutant("backends/triton/kernels/backward.py", "tl.where(kept, b_bound, b_dh)", "b_bound", CELLS),
    Mutant("backends/triton/scan.py", "keep is not None and not any(keep.stride())", "keep is not None", CELLS),
    Mutant("backends/eager/continuation.py", "Steps([B] * T), keep, norm", "Steps([B] * T), None, norm", "call/test_zoneout.py -k kernels_fail"),
    # Calls of a known kind.
    Mutant("repeats.py", "        *kinds, f, g, after, zero, backwards, time_major,", "        *kinds, f, g, after, zero, time_major,", REPEATS),
    Mutant("repeats.py", "        *kinds, f, g, after,", "        *kinds, g, after,", REPEATS),
    Mutant("repeats.py", " is fresh is input_drop is drop is zoneout is norm is None", " is fresh is input_drop is drop is norm is None", REPEATS),
    Mutant("repeats.py", "asks and t.requires_grad) for t", "asks) for t", REPEATS),
    Mutant("repeats.py", "plain = alike and not torch.is_grad_enabled() and", "plain = not torch.is_grad_enabled() and", REPEATS),
    Mutant("repeats.py", "plain = alike and not torch.is_grad_enabled() and", "plain = alike and", REPEATS),
    Mutant("repeats.py", "found[4][1].data_ptr()", "found[4][0].data_ptr()", REPEATS),
    Mutant("repeats.py", "            d_x = d_x.transpose(0, 1)", "            pass", REPEATS),
    Mutant("repeats.py", "torch.stack((bias_x, bias_h))", "torch.stack((bias_h, bias_x))", REPEATS),
    Mutant("backends/numba/bound.py", "d_out.stride(0), at.D_OUT_ROW", "d_out.shape[1] * d_out.shape[2], at.D_OUT_ROW", REPEATS),
    Mutant("backends/numba/bound.py", "begin + self._d, d_h0)", "begin + self._d, 0)", REPEATS),
    Mutant("backends/numba/kernels/packing.py", "if lane < columns else zero", "if lane < columns else source[start]", PANELS),
    Mutant("backends/numba/kernels/packing.py", "(packer + 1) * panels // packers", "packer * panels // packers + 1", PANELS),
    Mutant("backends/numba/kernels/packing.py", "if next_row == 1 and columns >= L else 0", "if columns >= L else 0", PANELS),
    Mutant("backends/numba/kernels/unpacked.py", "                out, o, step, width, k > 0,", "                out, o, step, width, False,", FEW),
    Mutant("backends/numba/kernels/unpacked.py", "gap, out, o, width, rows - tiled, back)\n    else:", "gap, out, 0, width, rows - tiled, back)\n    else:", FEW),
    Mutant("backends/numba/bound.py", "        self._kept = problem.kept", "        kept = problem.kept", REPEATS),
    Mutant("backends/numba/kernels/sums.py", "i_other = batch * units if is_reverse else 0", "i_other = 0", SUMS),
    Mutant("backends/numba/kernels/sums.py", "product > 2 and split > 0", "False", SUMS),
    # The units of one row shared among threads.
    Mutant("backends/numba/kernels/meeting.py", "s0 = s // chunk * chunk", "s0 = begin + (s - begin) // chunk * chunk", SHARED),
    Mutant("backends/numba/kernels/meeting.py", "if s > begin and not wait_for_others(meeting, me, count, s, 0):", "if s < 0:", SHARED),
    Mutant("backends/numba/kernels/meeting.py", "if is_shared and wait_for_others(meeting, 0, count, s + 1, longer * patience):", "if is_shared:", SHARED),
    Mutant("backends/numba/kernels/meeting.py", "if turn == 0 else others_from != s0:", "if turn == 0 else False:", SHARED),
    Mutant("backends/numba/bound.py", "self._shared.are_shared and may_share()", "self._shared.are_shared", SHARED + " -k alone_for_a_while"),
    Mutant("backends/numba/short.py", "if count == 1 or not may_share(steps > 1):", "if count == 1:", SHORT_SHARED + " -k for_a_while"),
    Mutant("backends/numba/kernels/parts.py", "if taken == count:", "if taken > count:", SHORT_SHARED + " -k for_a_while"),
    Mutant("backends/numba/short.py", "begin + part * self._space", "begin", SHORT_SHARED),
    Mutant("backends/numba/short.py", "if not variant.reset_after or (steps", "if (steps", SHORT_SHARED),
    Mutant("backends/numba/kernels/unpacked.py", "for row in range(rows if rest > 0 else 0)", "for row in range(0)", SHORT_SHARED + " -k row_by_row"),
    Mutant("backends/numba/kernels/products.py", "i + min(3, rows - 1 - row) * length", "i + min(2, rows - 1 - row) * length", SHARED),
    Mutant("backends/numba/kernels/shared.py", "advance(out, before * rows * U)", "advance(out, before * U)", SHARED),
    Mutant("backends/numba/kernels/shared_reverse.py", "advance(d, before * 3 * P)", "advance(d, now * 3 * P)", SHARED),
    Mutant("backends/numba/kernels/shared_reverse.py", "put(d_h0, row * U + j, total, left)", "put(d_h0, j, total, left)", SHARED),
    Mutant("backends/numba/kernels/shared_reverse.py", "if step == 0:", "if is_last:", SHARED),
    Mutant("backends/numba/backward.py", "d_states[number : number + 2]", "d_states[:: len(bounds)]", SHARED + " -k chunks"),
    Mutant("backends/numba/backward.py", "self.variant.gradient_clip is None and", "", SHARED + " -k one_direction"),
    Mutant("backends/numba/kernels/meeting.py", "return count if share == shares else", "return", SUMS),
    Mutant("backends/numba/kernels/sums.py", "more or k > 0,", "more,", SUMS),
    Mutant("backends/numba/kernels/sums.py", "first_of(part, parts, M, 4), first_of(part + 1, parts, M, 4)", "0, M // parts", SUMS),
    Mutant("backends/numba/kernels/products.py", "for vector in range(0, vectors * L, L):", "for vector in range(0, L, L):", SUMS),
    Mutant("backends/numba/kernels/products.py", "w, p + k * C + vector, C,", "w, p + k * C, C,", SUMS),
    Mutant("backends/numba/kernels/sums.py", "rows // 8 * 8 >= rows_to_turn(gates) * parts", "True", SUMS),
    Mutant("backends/numba/kernels/sums.py", "rows_to_turn(gates)", "rows_to_turn(0)", SHARED),
    Mutant("backends/numba/kernels/panel_sums.py", "pack_back(plan, plan[PART], plan[PARTS], like)", "pack_back(plan, plan[PART], 2 * plan[PARTS], like)", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "k > 0 or plan[IS_FIRST] == 0", "k > 0", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "c + C > units", "c > units", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "c < 3 * units", "c < 2 * units", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "a, b, c = a + u,", "a, b, c = u,", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "of_d = of_h + (units + 7) // 8 * 8 * width", "of_d = of_h + units * width", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "L, rows, out, to, L, width, more, True)", "L, rows, out, to, L, width, more, False)", SUMS),
    Mutant("backends/numba/kernels/panel_sums.py", "for number in range(part, panels, parts):\n            c", "for number in range(part, panels - 1, parts):\n            c", SUMS),
    Mutant("backends/numba/plain_sums.py", "[begin : begin + rows]", "[:rows]", SUMS),
    # Zoneout and the bound in numba.
    Mutant("backends/numba/kernels/reverse.py", "d_n, d_z, z = d_n * part, d_z * part, zone_out(z, part)", "d_n, d_z = d_n * part, d_z * part", "numba_backend/test_numba_oracle.py -k zoneout"),
    Mutant("backends/numba/kernels/reverse.py", "total = clamp(total,", "clamp(total,", "numba_backend/test_numba_oracle.py -k zoneout"),
    Mutant("backends/numba/kernels/reverse.py", "(n - get(h, i_h + j, left)), left)", "(get(h, i_h + j, left) - n), left)", "numba_backend/test_numba_oracle.py -k zoneout"),
    Mutant("backends/numba/kernels/scan.py", "order[row] * plan[at.KEEP_ROW] + j", "order[row] * plan[at.KEEP_ROW]", "numba_backend/test_numba_oracle.py -k zoneout"),
    Mutant("backends/numba/problem.py", "keep.numel() == 0 or any(keep.stride())", "keep.numel() == 0", "numba_backend/test_numba_oracle.py -k zoneout"),
    Mutant("backends/numba/kernels/short.py", "                        put(gates, o, r, rest)\n", "                        pass\n", "numba_backend/test_numba_oracle.py"),
    Mutant("backends/numba/kernels/short.py", "put(gates, k + first, z, rest)", "put(gates, k + second, z, rest)", "numba_backend/test_numba_oracle.py"),
    Mutant("backends/numba/kernels/short.py", "((steps + 1) * 3 * units + units)", "(steps * 3 * units + units)", "numba_backend/test_numba_oracle.py"),
    Mutant("backends/numba/kernels/short.py", "if x_step == rows * x_row else 1", "if rows else 1", "numba_backend/test_numba_oracle.py"),
    Mutant("backends/numba/short.py", "a.drop is None and a.keep is None", "a.drop is None", "call/test_zoneout.py"),
    # Layers that overlap.
    Mutant("overlap.py", "            lines.wait(layer, done[chunk])\n", "            pass\n", "torch/test_stacking.py"),
    Mutant("overlap.py", "lines.wait(layer, done[chunk])", "lines.wait(layer, done[chunk - 1])", "torch/test_stacking.py"),
    Mutant("overlap.py", "(steps + (layers - 1) * chunk)", "(steps + layers * chunk)", "torch/test_stacking.py"),
    Mutant("overlap.py", "        for layer in reversed(range(layers)):", "        for layer in range(layers - 1):", "torch/test_stacking.py"),
    Mutant("stacking.py", '("mask", "resets", "zoneout")', '("mask", "resets")', "torch/test_stacking.py"),
    Mutant("stacking.py", "                lines.lend(value, layer)\n", "                pass\n", "torch/test_stacking.py"),
    Mutant("stacking.py", "if gru.dropout and gru.training:", "if gru.dropout:", "torch/test_stacking.py"),
    Mutant("backends/triton/reasons.py", "if scans * programs > device.processors:", "if programs > device.processors:", "torch/test_stacking.py"),
    Mutant("backends/triton/tilings.py", "    elif units <= 128 and itemsize == 2:", "    elif units <= 96 and itemsize == 2:", "kernels/test_resident_budgets.py -k 128"),
    Mutant("overlap.py", "    lines.begin()\n", "", "torch/test_streams.py"),
    Mutant("overlap.py", "stream.wait_stream(self._caller)", "pass", "torch/test_streams.py"),
    Mutant("overlap.py", "self._caller.wait_stream(stream)", "pass", "torch/test_streams.py"),
    Mutant("overlap.py", "self._streams[layer].wait_event(event)", "pass", "torch/test_streams.py"),
    Mutant("overlap.py", "lines.lend(rows[chunk], layer)", "pass", "torch/test_streams.py"),
    Mutant("overlap.py", "value.record_stream(self._streams[layer])", "pass", "torch/test_streams.py"),
    Mutant("overlap.py", "value.record_stream(self._caller)", "pass", "torch/test_streams.py"),
    Mutant("overlap.py", "with torch.cuda.stream(self._streams[layer]):", "with torch.cuda.stream(self._caller):", "torch/test_streams.py"),
    Mutant("overlap.py", "torch.is_grad_enabled() and value.requires_grad for", "torch.is_grad_enabled() for", "torch/test_streams.py"),
    Mutant("stacking.py", "_behind_gate([calls[0] for calls in (first, *above)])", "[calls[0] for calls in (first, *above)]", "torch/test_streams.py"),
    Mutant("overlap.py", "return max(-(-steps // chunks), 1)", "return -(-steps // chunks)", "torch/test_stacking.py"),
    Mutant("stacking.py", "(given if isinstance(given, tuple) else (given,))", "(given,)", "torch/test_streams.py"),
    Mutant("stacking.py", "and x.is_cuda and not is_traced():", "and x.is_cuda and not torch.compiler.is_compiling():", "torch/test_stacking.py"),
    Mutant("stacking.py", "if is_watched((first[0].x, first[0].initial_state, *gru._flat_weights)):", "if is_watched(()) and is_transformed():", "torch/test_stacking.py"),
    # Memory of packed weights.
    Mutant("backends/numba/spare.py", "found = _spare.pop()", "found = _spare[0]", "numba_backend/test_numba_bits.py"),
    # What a configuration and a command take.
    Mutant("keras/layer.py", "if self.gradient_clip is not None:  # 0 is a bound too", "if self.gradient_clip:", "call/test_zoneout.py -k configurations"),
    Mutant("tools/oracle/compare.py", '        "heads": options.whole(1, options.MOST_UNITS),\n', "", "tools/test_options.py -k several_heads"),
    # Vectors as wide as another processor's.
    Mutant("backends/numba/kernels/dots.py", "store_across(out, o, width, add_pairs(first, second))", "store_across(out, o, width, first)", "numba_backend/test_numba_processes.py -k width"),
    Mutant("backends/numba/kernels/dots.py", "store_across(out, o + 2 * width, width, second)", "store_across(out, o + width, width, second)", UNPACKED),
    Mutant("backends/numba/kernels/dots.py", "else group) * ACROSS, last - ACROSS)", "else group) * ACROSS, last)", UNPACKED),
    Mutant("backends/numba/kernels/dots.py", "load_first_across(w, p + whole, s, n)", "load_first_across(w, p, s, n)", "numba_backend/test_numba_processes.py -k width"),
    Mutant("backends/numba/kernels/vector_type.py", 'icmp_signed("<", lanes', 'icmp_signed("<=", lanes', UNPACKED),
    Mutant("backends/numba/kernels/unpacked.py", "windows - 1 - window if back", "windows - window if back", UNPACKED),
    Mutant("backends/numba/kernels/shared.py", "2 - turn if back", "1 - turn if back", SHARED),
    Mutant("backends/numba/short.py", "fewer[-1] if fewer", "fewer[0] if fewer", UNPACKED),
    Mutant("backends/numba/kernels/products.py", "v = get(w, p, count)", "v = get(w, p, count - 1)", UNPACKED),
    Mutant("backends/numba/kernels/products.py", "r7 = min(5, present - 1), min(6, present - 1), min(7", "r7 = min(5, present - 1), min(6, present - 1), min(6", UNPACKED),
    Mutant("backends/numba/kernels/products.py", "get(out, o6, count), get(out, o7, count)", "get(out, o6, count), get(out, o6, count)", SUMS),
    Mutant("backends/numba/sums.py", "has_large_cache() and not is_narrow", "has_large_cache()", SUMS),
    Mutant("backends/numba/sums.py", "units >= LIBRARY_UNITS", "units > LIBRARY_UNITS", SUMS),
    Mutant("backends/numba/bound.py", " and not are_for_library(T * B, a.w, U)", "", SUMS + " -k library"),
    # Members.
    Mutant("backends/members.py", "variant._replace(reverse=backwards) for", "variant for", "call/test_members.py"),
    Mutant("backends/members.py", "return len(kinds) == 1", "return True", "call/test_members.py"),
    Mutant("backends/operators.py", "if is_whole else (width, T, B, U)", "if not is_whole else (width, T, B, U)", "call/test_members.py -k opcheck"),
    Mutant("backends/eager/members.py", "value.flip(0) if self.backwards[m] else value", "value", ONE_SCAN),
    Mutant("backends/eager/members.py", "(self.T - end, self.T - begin) if", "(begin, end) if", ONE_SCAN),
    Mutant("backends/eager/members.py", "torch.stack([a.drop for a in members], dim=1)", "torch.stack([a.drop for a in members[:1] * self.M], dim=1)", ONE_SCAN),
    Mutant("backends/eager/members.py", "a.mask is None and a.resets is None and", "a.mask is None and", "call/test_eager_members.py -k not_one_scan"),
    Mutant("backends/numba/members.py", "value[m].data_ptr()", "value[0].data_ptr()", "call/test_members.py"),
    Mutant("backends/numba/kernels/parts.py", "    while part < observe", "    if part < observe", "numba_backend/test_numba_processes.py -k caller_does"),
    Mutant("backends/numba/threads.py", "and not count_forks()", "", "numba_backend/test_numba_processes.py -k fork"),
    Mutant("backends/numba/threads.py", "count = min(len(addresses), torch.get_num_threads())", "count = len(addresses)", "numba_backend/test_numba_processes.py -k no_more"),
    # Calls of a known kind.
    Mutant("repeats.py", "first + self._second if self._are_one else 0", "first + self._second if self._second else 0", REPEATS),
    Mutant("repeats.py", "clip is None or type(clip) in (int, float)", "True", REPEATS),
    Mutant("stacking.py", "for t in (x, hx, *weights))", "for t in (x, *weights))", "torch/test_assigned_weights.py -k frozen"),
    Mutant("activations.py", 'f"another {name}" if name in TABLE else name', "name", "call/test_activations.py -k callable_with"),
    Mutant("keras/step.py", "            return take\n        return None\n", "            return take\n", "layers/test_last_step.py -k same_bits"),
    Mutant("backends/triton/run.py", "[v.reverse for v in variants], save_gates", "[variants[0].reverse] * len(variants), save_gates", "kernels/test_resident.py -k same_bits"),
    Mutant("backends/triton/run.py", 'name in ("mask", "resets") and _are_same(values)', 'name in ("mask", "resets")', "kernels/test_resident.py -k same_bits"),
    Mutant("backends/triton/run.py", "not _are_same([a.x for a in members])", "False", "kernels/test_resident.py -k same_bits"),
    Mutant("backends/triton/tilings.py", "return waves > MOST_WAVES, waves *", "return False, waves *", "kernels/test_resident.py -k least_estimated"),
    Mutant("backends/triton/tilings.py", "waves * (ALONE_COSTS[units > 64] if alone else ROW_COSTS[tiling.block_b])", "waves", "kernels/test_resident.py -k least_estimated"),
    Mutant("backends/triton/tilings.py", "max(3 * units, padded_width(units, size)) * batch", "3 * units * batch", "kernels/test_resident.py -k has_a_reason"),
    # The exchange of the resident kernels.
    Mutant("backends/triton/kernels/resident_waits.py", '*pair, f"min.u32 w, w, {_NEAREST:#x};",', "*pair,", "kernels/test_resident.py -k bits_of_a_mark"),
    Mutant("backends/triton/kernels/resident_waits.py", "for i in range(1, len(awaited))]", "for i in range(1, 1)]", "kernels/test_resident.py -k both"),
    Mutant("backends/triton/kernels/resident_waits.py", 'if group else waited + asked', 'if group else asked + waited[:1]', "kernels/test_resident.py -k both"),
    Mutant("backends/triton/kernels/resident_exchange.py", "m_row[:, None] & (o_h < C.WIDTH)", "m_row[:, None] & (o_h < C.U)", "kernels/test_resident.py -k both"),
    Mutant("backends/triton/kernels/resident_exchange.py", "a_b = gl.minimum(a_b, B - 1)", "a_b = a_b + 0", "kernels/test_resident.py -k both"),
    Mutant("backends/triton/kernels/resident_exchange.py", "if C.HAS_TAIL and number == C.NK - 1:", "if C.HAS_TAIL and number == C.NK:", "kernels/test_resident.py -k infinite"),
    Mutant("backends/triton/kernels/resident_forward.py", "    y = clear\n    drops", "    y = h * 0\n    drops", "kernels/test_resident.py -k clears"),
    Mutant("backends/triton/kernels/resident_forward.py", "b_fresh = clear", "b_fresh = h * 0", "kernels/test_resident.py -k clears"),
    Mutant("backends/triton/kernels/resident_layout.py", ' and (kernel == "backward" or asked["DROPS"] == 0)', "", "kernels/test_resident.py -k both"),
    Mutant("backends/triton/resident.py", "make_marked(like, *shape) if is_handed else like.new_empty(shape)", "like.new_empty(shape)", "kernels/test_resident.py -k both"),
    Mutant("backends/triton/kernels/resident_forward.py", "resets += member * T * B", "resets += member * 0", "kernels/test_resident.py -k members_of"),
    Mutant("backends/triton/kernels/resident_backward.py", "resets += member * T * B", "resets += member * 0", "kernels/test_resident.py -k members_of"),
    Mutant("backends/triton/resident.py", "mask is not None and not self.steps.end_alike", "False", "kernels/test_resident.py -k members_of"),
    Mutant("functional.py", "a.x is first.x and a.mask", "a.mask", "call/test_members.py"),
    Mutant("keras/bidirectional.py", "(resets, shifted))\n        else", "(resets, resets))\n        else", LAYER),
    Mutant("backends/running.py", "    if torch._C._are_functorch_transforms_active():\n        out, last", "    if False:\n        out, last", "torch/test_mapping.py"),
    Mutant("call/check.py", "            return True\n    return False", "            return False\n    return False", "torch/test_mapping.py"),
    # Autograd around the scan.
    Mutant("backends/eager/layout.py", "torch.cat((after[begin + 1 : end], h0))", "torch.cat((h0, after[: end - 1]))", FLAGS),
    Mutant("backends/triton/run.py", "gx.add_(bias)), bias_n", "gx), bias_n", FLAGS),
    Mutant("backends/triton/run.py", "d_fresh = d_fresh.sum(0)", "d_fresh = d_fresh[0]", FLAGS),
    Mutant("backends/triton/run.py", "d_n = d_gh_n if v", "d_n = d_gx[..., 2 * U :] if v", FLAGS),
    Mutant("backends/triton/run.py", "else entering * gates[1]", "else entering * gates[0]", FLAGS),
    Mutant("backends/triton/run.py", "product_like((h * m).flatten(0, 1)", "product_like(h.flatten(0, 1)", FLAGS),
    Mutant("call/check.py", "a.initial_state, a.reset_state, a.zoneout]", "a.initial_state, a.zoneout]", "call/test_graphs.py -k only_one"),
    Mutant("backends/gradients.py", "t if t is None else t.view_as(t)", "t", "call/test_graphs.py -k counted_once"),
    Mutant("backends/aten.py", "inner[2:], train=True)", "inner[2:], train=False)", TORCH_CALLS),
    Mutant("backends/aten.py", "for gradient in (d.w, d.u))", "for gradient in (d.u, d.w))", TORCH_CALLS),
    # The dispatcher.
    Mutant("tuning/choices.py", "if race.triton <= race.aten:", "if race.triton >= race.aten:", "kernels/test_races.py"),
    Mutant("backends/triton/reasons.py", "or s.shape.time == 1 or", "or", "kernels/test_races.py"),
    Mutant("backends/aten.py", 'reasons.append("mask or lengths given")', "pass", DISPATCH),
    Mutant("backends/aten.py", "if s.recurrent_dropouts:", "if s.recurrent_dropouts > 1:", DISPATCH),
    Mutant("backends/reasons.py", "if not known:", "if known is None:", DISPATCH),
    Mutant("backends/triton/reasons.py", "(torch.float32, torch.float16, torch.bfloat16)", "(torch.float64, torch.float32)", DISPATCH),
    Mutant("backends/aten.py", "0 in (s.shape.time, s.shape.batch)", "s.shape.time == 0", DISPATCH),
    # torch's own GRU.
    Mutant("backends/aten.py", "torch.cat((r, z, n), dim=-1)", "torch.cat((z, r, n), dim=-1)", ATEN),
    Mutant("backends/aten.py", "(outputs.flip(0) if v.reverse else outputs)", "outputs", ATEN),
    Mutant("backends/aten.py", "x = a.x.flip(0) if v.reverse else a.x", "x = a.x", ATEN),
    # The layer.
    Mutant("keras/layer.py", "self._carried.keep(state,", "self._carried.keep(outputs[:, 0],", STATE),
    Mutant("keras/state.py", "state.shape[0], state.detach().to", "state.shape[0], state.to", STATE),
    Mutant("keras/state.py", "if weight.is_meta or _drops_values(convert):", "if weight.is_meta:", CARRIED),
    Mutant("keras/state.py", "for carried, batch, value in before:", "for carried, batch, value in ():", CARRIED),
    Mutant("keras/layer.py", "0 if self.go_backwards else steps - 1", "steps - 1", f"{LAYER} -k backwards"),
    Mutant("keras/layer.py", "self.reset_dropout_mask()", "pass", MASKS),
    Mutant("keras/layer.py", "count = 3 if self.implementation == 1 else 1", "count = 1", f"{LAYER} -k masks"),
    Mutant("keras/layer.py", "/ y.shape[0]", "/ 1", f"{LAYER} -k losses"),
    Mutant("keras/state.py", "self._carried.value = self._check_states(states)", "self._check_states(states)",
           f"{LAYER} -k state"),
    Mutant("keras/dropout.py", "shape[time_axis] = 1", "pass", f"{LAYER} -k mask"),
    Mutant("keras/base.py", "self._write(name, torch.stack(values) if parameter", "print(name, torch.stack(values) if parameter", f"{LAYER} -k constr"),
    Mutant("keras/constraints.py", "norm.clamp(0, self.max_value)", "norm", "layers/test_keras_parts.py -k constraint"),
    Mutant("keras/bidirectional.py", "else y_rev.flip(axis)", "else y_rev", f"{LAYER} -k bidirectional"),
    Mutant("keras/bidirectional.py", "resets=shifted", "resets=resets",
           f"{LAYER} -k bidirectional"),
    Mutant("keras/bidirectional.py", "initial_state=states[1]", "initial_state=states[0]", f"{LAYER} -k bidirectional"),
    # The drop-in.
    Mutant("stacking.py", "hx[layer * directions : (layer + 1) * directions]", "hx[:directions]", COMPAT),
    Mutant("stacking.py", "resets = torch.cat((resets[1:], torch.zeros_like(resets[:1])))", "pass", COMPAT),
    Mutant("stacking.py", "resets = resets & valid", "pass", COMPAT),
    Mutant("stacking.py", "layer + 1 < gru.num_layers", "layer < gru.num_layers", "torch/test_compat.py -k dropped"),
    Mutant("compat.py", "h_n if order is None else h_n.index_select(1, order)", "h_n", COMPAT),
    Mutant("stacking.py", "zero_output_for_mask=True,\n", "zero_output_for_mask=False,\n", COMPAT),
    # Jagged inputs, layouts of weights, streams, the tolerance.
    Mutant("keras/jagged.py", "offsets[:-1][row]", "offsets[:1]", STREAM),
    Mutant("keras/jagged.py", "rows.lengths[rows.row] - 1 - rows.step", "rows.step", STREAM),
    Mutant("layouts.py", "torch.cat((second, first, third), dim=axis)", "torch.cat((first, second, third), dim=axis)",
           "files/test_convert.py -k layouts"),
    Mutant("layouts.py", "swap_gates(torch.stack((b_ih, b_hh)), 1)", "swap_gates(torch.stack((b_hh, b_ih)), 1)",
           "files/test_convert.py -k layouts"),
    Mutant("stream.py", "            self._masks = None\n", "            pass\n", STREAM),
    Mutant("stream.py", "                hook(layer, None)\n", "                pass\n", STREAM),
    Mutant("stream.py", "return new\n        self.state = new\n", "return new\n        self.state = x.new_zeros(new.shape)\n", STREAM),
    Mutant("tools/oracle/tolerance.py", "if not error <= allowed", "if error > allowed", "tools/test_tools.py -k tolerance"),
    Mutant("activations.py", "0.2 * ((y > 0) & (y < 1))", "0.2 * (y > 0)", "call/test_activations.py"),
    # A row read from another row, a padded value that reaches a result, a gate beside its place: what equal bits, and
    # the tolerance where errors grow, are asked for.
    Mutant("backends/triton/kernels/product.py", "p_rows + (o_b[:, None] * s_row", "p_rows + ((o_b[:, None] & -2) * s_row", ROW_ORDER),
    Mutant("backends/triton/kernels/forward.py", "keep[:, None], b_new, b_h)", "keep[:, None], b_new, b_new)", ROW_ORDER),
    Mutant("call/problem.py", "x = torch.where(mask[:, :, None], x, x.new_zeros(()))", "pass", PADDING),
    Mutant("stacking.py", "resets = resets & valid", "resets = resets & True", PADDING),
    Mutant("backends/eager/forward.py", "torch.lerp(n, h, z", "torch.lerp(n, h, r", ENLARGED),
    Mutant("reference.py", "(r * h_n) @ u_n", "(z * h_n) @ u_n", ENLARGED),
    Mutant("tools/onnx/translate.py", "[[1, 0, 2]].ravel()", "[[0, 1, 2]].ravel()", ONNX),
    Mutant("tools/onnx/translate.py", "(ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation])",
           "(ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation])", ONNX),
    Mutant("tools/oracle/tolerance.py", "in (oracle, *moved))", "in (oracle,))", "call/test_tolerance.py -k moved"),
    Mutant("tools/options.py", "if not low <= value <= high:", "if not low <= value:", "tools/test_options.py -k units"),
    Mutant("named_weights.py", '("zoneout", 0), ', "", "torch/test_tracing.py -k script_refuses"),
    Mutant("tools/weight_files/convert.py", '("zoneout", "gradient_clip") if', '("gradient_clip",) if', "files/test_convert.py -k zoneout"),
]  # fmt: skip
