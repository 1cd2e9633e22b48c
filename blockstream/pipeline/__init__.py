"""How bytes move: sender, receiver, compression, journal, progress."""
