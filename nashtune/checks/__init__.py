"""`nashtune judge-check`: a judge held against labelled comparisons, or a run's judge looked at."""
