"""Matrix games: every preference algorithm against an equilibrium that is known exactly."""
