"""What people type, as objects: one file a kind of place, and one row each in `registry.py`."""
