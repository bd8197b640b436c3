"""Stage 7: Evidence Documents reach the PACS."""
