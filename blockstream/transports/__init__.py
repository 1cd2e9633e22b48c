"""Ways to another host; each is a program with a byte pipe each way."""
