"""What a study says of each claim of the paper: `rules` decide, `evidence` is what they see, `judge` asks them all."""
