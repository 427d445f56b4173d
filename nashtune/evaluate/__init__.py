"""Measuring policies: held-out win rates now, public benchmarks beside them."""
