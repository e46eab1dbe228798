"""Chat templates: a conversation becomes views (see `honed.data.templates.view`), the same in training and in serving.

The cut before an answer is where the template's own generation prompt ends, so no marks in the template and no search
for marker tokens are needed: what stands before the cut is, by construction, what inference feeds.
"""

from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PLAIN_END, PLAIN_SYSTEM_PROMPT, PlainTemplate
from honed.data.templates.view import TRAIN_ON, Masks, Piece, Template, View, special_tokens, trained_turns

__all__ = [
    "PLAIN_END",
    "PLAIN_SYSTEM_PROMPT",
    "TRAIN_ON",
    "JinjaTemplate",
    "Masks",
    "Piece",
    "PlainTemplate",
    "Template",
    "View",
    "special_tokens",
    "trained_turns",
]
