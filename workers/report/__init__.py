"""Stage 6: a reading becomes Evidence Documents."""
