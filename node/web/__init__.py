"""The HTTP face: status pages and health."""
