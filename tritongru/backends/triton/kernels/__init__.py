"""The Triton kernels: `@triton.jit` functions only. `launch`, `rows`, `probe` and `ahead` name them."""
