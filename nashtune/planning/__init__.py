"""What a run will take, before anything is spent: tokens, money, time and disk."""
