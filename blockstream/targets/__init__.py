"""Where bytes go: one file a target, known to others only as `interfaces.Target`."""
