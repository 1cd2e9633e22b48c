"""Formats of bytes on disk and in files, parsed without I/O."""
