"""Tasks of lm-evaluation-harness, as the Open LLM leaderboard ran them, in a process of their own."""
