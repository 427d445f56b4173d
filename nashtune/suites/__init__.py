"""Published evaluations, each equal to its reference implementation where that has one."""
