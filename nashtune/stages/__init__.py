"""What the loop calls: each stage of Algorithm 2 over a run folder, with units, resume and progress around it."""
