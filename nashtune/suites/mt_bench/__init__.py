"""MT-Bench (Zheng et al., arXiv 2306.05685): two turns, graded one answer at a time or two side by side."""
