"""Oracles: whatever can say which of several answers is better."""
