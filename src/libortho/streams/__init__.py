"""What lies on disk: the INT4 base and the ortho streams beside it."""
