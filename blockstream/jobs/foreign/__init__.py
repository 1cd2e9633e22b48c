"""Streams of other tools: taken, made, merged, shown."""
