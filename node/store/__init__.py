"""What survives a restart: the spool (durable files) and its index, the database."""
