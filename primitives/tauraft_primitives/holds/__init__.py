"""What all that can be held has in common: the hold, and the block it is held in."""
