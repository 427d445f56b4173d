"""vLLM as an engine: in a process of its own, by a Python interpreter that may be another one than this."""
