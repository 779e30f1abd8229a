"""One request's decode loop, without I/O."""
