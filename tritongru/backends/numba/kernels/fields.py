"""The places of a plan: the array of int64 that every kernel is called with. Addresses are 0 where there is nothing.

Shapes: T steps, B rows of the batch, I inputs, U units; P is U rounded up to whole vectors (whole panels where gates
are multiplied apart). A part of the batch has `ROWS` rows in groups of `SIZE`, R with the last group filled up. Strides
count numbers, not bytes; the last axis of every tensor but the weights is contiguous. Packed matrices: see products.py;
inside, the gates' order is z, r, n.
"""

(
    STEPS, BATCH, INPUT, UNITS, PADDED,
    REVERSE, RESET_AFTER, ZERO_OUTPUT, ACTIVATION, RECURRENT_ACTIVATION,
    # Weights as they are given, in the gates' order of the layout: (I,3U), (U,3U), (3U,), (3U,).
    W_GIVEN, W_ROW, W_COLUMN, U_GIVEN, U_ROW, U_COLUMN, BIAS_X, BIAS_H,
    # Packed: (I,3P) and (U,3P), or (3P,N) with rows in the order n, z, r; (3P,), and (P,) inside the reset product.
    W, RECURRENT, TRANSPOSED, BIAS, BIAS_N,
    PACKER, PACKERS,  # which thread of how many packs for all parts; 0 of 0 where each packs what it reads
    X, X_STEP, X_ROW,  # (T,B,I), or (T,B,3U) where there is no W
    H0, H0_ROW,  # (B,U)
    MASK, RESETS,  # (T,B) bytes
    FRESH, FRESH_STEP, FRESH_ROW,  # (T,B,U), FRESH_STEP 0 for (B,U)
    KEEP, KEEP_STEP, KEEP_ROW,  # (T,B,U), how much of the new state a unit takes
    DROP, DROPS,  # (DROPS,B,U) in the order z, r, n; DROPS 0, 1 or 3
    SCALE, EPSILON, JOINT,  # of a norm: (3U,) in the weights' order, one number, and whether it takes x W too
    OUT, STATES,  # (T,B,U): outputs, and the states leaving each step where a mask makes them differ
    LAST,  # (B,U)
    GATES, Z_AT, R_AT, N_AT, WIDTH,  # (T,B,WIDTH) with h R_n + c_n at 0 where reset_after
    # The reverse scan alone.
    D_OUT, D_OUT_STEP, D_OUT_ROW, D_LAST,  # (T,B,U), (B,U)
    D_GATES, D_FIRST, PLACES,  # rows (..,WIDTH) of the steps taken; that of (t,b) is PLACES[t,b], or t B + b, - D_FIRST
    D_H0, D_FRESH, D_FRESH_STEP,  # (B,U) where anyone wants it, (T,B,U) or (B,U) with D_FRESH_STEP 0
    D_KEEP, CLIP,  # (T,B,U), and one number that bounds the state's gradient
    NORMAL, RSTD, D_SUMS,  # rows as those of D_GATES: (..,3U) and (..,1), blocks at the places of GATES
    COLUMNS,  # N: U rounded up to whole panels
    # One part: its rows, in groups of SIZE, and the steps to take in the order of processing.
    ROWS, SIZE, FIRST, ORDER,  # ORDER: (B,) int64, the rows of all parts; 0: as they are. FIRST: where the part begins
    BEGIN, END,
    SHARE, SHARES, MEETING,  # of units that several threads share: which of how many, and where they meet
    # What these leave for each other in a reverse scan: (steps,R,N), and (steps,R,3P) in the order q, z, r.
    CARRIED, D_STEPS,
    CHUNK,  # steps projected at a time
    # Its scratch: numbers of R rows each, then int64 by row and by group, and bytes by step and group.
    H, ENTERING, PROJECTED, SUMS, SHOWN, KEPT, PLACED, GROUPS, LIVE, FLAGS,
) = range(89)  # fmt: skip

NAMES = tuple(name for name in list(globals()) if name.isupper())
