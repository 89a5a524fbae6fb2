"""What selects choose, and what that costs."""
