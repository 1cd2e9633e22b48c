"""What people type and read: one file a command."""
