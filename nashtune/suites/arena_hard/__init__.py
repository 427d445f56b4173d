"""Arena-Hard v0.1 and v2.0 (Li et al., arXiv 2406.11939): a model against a baseline, in both orders, on five degrees."""
