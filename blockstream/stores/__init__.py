"""Where objects lie: a folder, or a bucket. Each keeps the promises of `interfaces.Objects`."""
