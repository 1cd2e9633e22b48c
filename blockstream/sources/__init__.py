"""Where bytes come from: one file a source, known to others only as `interfaces.Source`."""
