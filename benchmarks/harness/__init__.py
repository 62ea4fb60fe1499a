"""What every operator benchmark shares: timing, rounds, controls, results."""
