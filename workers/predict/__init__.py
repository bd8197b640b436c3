"""Stage 5: a volume becomes a reading."""
