"""Streams of other tools: one file a format, registered in `table`."""
