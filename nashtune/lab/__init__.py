"""The lab: several methods from one initial policy, on the same prompts, judged alike, in one table."""
