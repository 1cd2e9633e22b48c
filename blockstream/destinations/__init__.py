"""What takes a captured disk: one file a kind of destination; `interface.py` is theirs."""
