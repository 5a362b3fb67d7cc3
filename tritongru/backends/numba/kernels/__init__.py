"""What numba compiles. Calls inside follow numba's rules: every helper is compiled for the types it is given."""
