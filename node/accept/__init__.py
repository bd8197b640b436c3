"""Stage 1: instances come in, over C-STORE, and are durable before they are acknowledged."""
