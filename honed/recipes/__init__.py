"""Recipes that come with honed."""
