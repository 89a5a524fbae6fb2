"""Text to tree to text: scan, parse, format."""
