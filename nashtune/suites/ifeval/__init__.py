"""IFEval (Zhou et al., arXiv 2311.07911): instructions that a program can verify, strict and loose."""
