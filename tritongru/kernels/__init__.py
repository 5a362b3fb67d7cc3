"""The Triton kernels: `@triton.jit` functions only. `tritongru.launch` is their one importer."""
