"""A hybrid query and its preparation, side by side with the frameworks' peers."""
