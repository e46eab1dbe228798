"""Conversations as views: texts cut into trained and untrained parts, the same in training and in serving.

The cut before an answer is the end of the template's own generation prompt, so templates need no marks and no marker
tokens are searched: by construction, the text before the cut is the input at inference.
"""
