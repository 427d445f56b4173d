"""IFBench (Pyatkin et al., arXiv 2507.02833): 58 further types of verifiable instructions, checked as published."""
