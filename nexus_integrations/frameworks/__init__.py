"""What both framework folders share: encoders of a process, stores, and the life of a nudge."""
