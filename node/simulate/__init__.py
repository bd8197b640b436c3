"""A scanner and a PACS for the demo and the tests; phantoms with known truth."""
