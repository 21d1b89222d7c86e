"""Kill a process that changes a nudge, again and again, and check what it left."""
