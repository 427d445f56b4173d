"""Engines that schedule work units. Storage is the state; an engine only decides where a unit runs."""
