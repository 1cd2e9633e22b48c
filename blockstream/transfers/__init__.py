"""One disk on its way between two ends: sent, received, copied, compared, verified, undone."""
