"""Choosing: from queries and keys to the tensors that selects become."""
