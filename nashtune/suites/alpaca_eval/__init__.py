"""AlpacaEval 2: its judge, its raw metrics and its length-controlled win rate, equal to the published ones."""
