"""Conversations as views: texts cut into what is trained and what is not, the same in training and in serving.

The cut before an answer is where the template's own generation prompt ends, so no marks in the template and no search
for marker tokens are needed: what stands before the cut is, by construction, what inference feeds.
"""
