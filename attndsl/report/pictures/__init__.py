"""Masks as pictures."""
