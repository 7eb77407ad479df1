"""What the evidence supports for each model (`verdicts`), and what it does not cover (`limits`)."""
