"""The Triton kernels: `@triton.jit` functions only. `scan`, `resident`, `rows`, `probe` and `ahead` name them."""
