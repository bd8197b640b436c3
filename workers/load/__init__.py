"""Stage 4: a series becomes a volume."""
