"""What a command does, without its words; returns a result object."""
