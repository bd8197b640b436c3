"""Stage 3: a complete study becomes jobs."""
