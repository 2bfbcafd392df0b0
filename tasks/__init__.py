"""What makes a task a task: hooks of the Trainer, and a predictor. No task imports another."""
