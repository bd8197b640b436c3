"""Stage 2: instances become complete studies."""
