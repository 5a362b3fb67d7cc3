"""The Triton kernels as a backend. Only what runs or compiles a kernel imports triton."""
