"""Judge each claim of the paper by a study: `rules` decide, `evidence` is what they see, `judge` asks them all."""
