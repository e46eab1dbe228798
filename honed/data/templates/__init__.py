"""Conversations as views: texts cut into what is trained and what is not."""
