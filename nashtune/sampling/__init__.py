"""Engines that answer prompts, and the detection of defective answers."""
