"""Nouns that any task may use: corpora, features, models, losses. Never a trainer, never a task."""
