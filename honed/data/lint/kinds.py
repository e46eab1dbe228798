"""The kinds of problems that `honed data check` can find, and the collector that counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from honed.data.example import Source

SEVERITIES = ("error", "warning", "hint")
EXAMPLES = 3  # places shown for each finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of problem.

    Attributes:
        name: for JSON and tests.
        severity: "error" (training would teach something wrong, or cannot use the rows), "warning" (usually reduces
            quality), "hint" (worth a look).
        says: what it means, in one sentence.
        fix: how to fix it.
    """

    name: str
    severity: str
    says: str
    fix: str


# By severity: what it means, and how to fix it.
_KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "error": {
        "unusable": (
            "These rows cannot be trained on; training stops at them unless data.bad_rows=drop.",
            "fix the rows named, or leave them out with data.bad_rows=drop (they stay in the ledger)",
        ),
        "untrained_stop": (
            "Answers end in a token at which generation does not stop, so the model would learn to run on.",
            "use a chat template that closes answers with the end token, or give the tokenizer an eos_token",
        ),
        "tool_call": (
            "The arguments of a tool call are not a JSON object, so the model would learn calls that fail.",
            "fix the JSON of these calls (an object in double quotes, no trailing commas)",
        ),
        "eval_overlap": (
            "Rows are in the evaluation file as well, so its loss would measure memory.",
            "take these rows out of one of the two files",
        ),
    },
    "warning": {
        "control_token": (
            "A message spells a control token; honed trains it as plain text, other tools may end the turn there.",
            "remove it from the message, unless the text is about such tokens",
        ),
        "several_formats": (
            "Rows have the columns of several formats, and only one of them is trained.",
            "choose with data.format=NAME (from Python: data_format), or take the other columns out",
        ),
        "empty_reasoning": (
            "Trained answers begin with an empty reasoning block: the model learns not to think when asked to.",
            "give the answers their reasoning; or train them as they are served without thinking: "
            "data.train_on=assistant data.template_arguments={enable_thinking: false}, if the template knows it",
        ),
        "overlong": (
            "Rows are longer than max_length: overlong=drop leaves them out, truncate cuts, split divides them.",
            "raise data.max_length, shorten the rows, or accept it; data.overlong chooses what happens",
        ),
        "foreign_stop": (
            "Answers end in a control token that the model's own configuration does not stop at.",
            "honed saves it as a stop token with the trained model; set it too where another server is used",
        ),
        "spelled_end": (
            "Answers end with a marker that is no special token of this tokenizer: it is trained and shown as text.",
            "set add_tokens=[MARKER] and eos_token=MARKER, or take a template that was made for this tokenizer",
        ),
        "two_bos": (
            "Texts begin with the BOS token twice, and a served prompt has it once.",
            "take one out of the rows, or give messages instead of the text a template made of them",
        ),
        "border": (
            "At the answer's start, prompt and answer have other tokens as one text than each on its own.",
            'let answers begin with white space, not prompts end with it ("is" + " Rome"), and serve such prompts; '
            "where prompts are served as they stand here, this is trained as it is served",
        ),
        "open_reasoning": (
            "Answers open a <think> block and never close it, so the model would learn to think without end.",
            "complete or remove these rows; answers that were cut off at a limit of tokens look like this",
        ),
        "train_flag": (
            "Messages say under another tool's key whether they are trained, and this key is not read.",
            "name it: data.columns={train: KEY} (or {weight: KEY}, for numbers); or take it out of the rows",
        ),
        "tool_misfit": (
            "Calls do not fit the tools that their row offers, or results fit no call: calls like these fail.",
            "offer every tool that is called (`tools`), with all of its arguments; or fix the call",
        ),
        "wrapped_result": (
            "The chat template puts tags around tool results that have them already, so they stand twice.",
            "take the tags out of the messages with role tool; they are added when the model is served, too",
        ),
        "role_order": (
            "Roles do not alternate as in a conversation, so the model sees what no user will send.",
            "join neighbouring messages of one role, and let each row begin with a user and end with an answer",
        ),
        "empty_message": (
            "A question or system prompt holds no text.",
            "fill it in or remove the row",
        ),
        "duplicate": (
            "Rows repeat an earlier row word for word, and weigh double in training.",
            "keep one of each, unless the repetition is intended",
        ),
        "eval_near": (
            "Rows are nearly the same as rows of the evaluation file, or ask one of its questions.",
            "take them out of one of the two files, or split by groups of similar rows",
        ),
        "mojibake": (
            "Text was decoded with the wrong character set, and the model would learn to write it so.",
            "decode the source again as UTF-8 (or repair it with a tool such as ftfy)",
        ),
        "invisible": (
            "Text holds characters that nobody sees, and the model would learn to write them.",
            "take them out (text.replace('\\u200b', '')), or put a line end in place of a separator; texts copied "
            "from web pages and PDF files hold them, and some hide instructions",
        ),
        "repeated_key": (
            "JSON objects have a key twice: the last value is trained, and those before it are lost.",
            "give each value a key of its own, or take one out; json.dumps never writes a key twice",
        ),
        "secret": (
            "Something looks like an access key or a private key; a model can be made to repeat it.",
            "revoke the key and replace it in the data",
        ),
    },
    "hint": {
        "control_token_kept": (
            "Texts without a chat template spell control tokens, and honed trains them as control tokens.",
            "do nothing if a template wrote these texts; otherwise take the tokens out, or give messages",
        ),
        "near_duplicate": (
            "Rows share at least about 80% of their three-word sequences with an earlier row.",
            "keep one of each group where variety matters",
        ),
        "system_prompts": (
            "Rows differ in their system prompt; at inference the model should get one that it was trained with.",
            "give all rows the same with data.system, unless the difference is intended",
        ),
        "rare_script": (
            "Rows are written in a script that hardly any other row uses.",
            "check that these rows belong here",
        ),
        "long_row": (
            "Rows are far longer than the rest, and set how much memory a batch needs.",
            "check them for pasted logs or whole books; data.max_length leaves them out",
        ),
        "short_answer": (
            "Answers of a few characters among long ones.",
            "check that they answer the question",
        ),
        "personal_data": (
            "Something looks like an e-mail address or a phone number (shown masked here).",
            "replace it, unless it is public or made up",
        ),
    },
}
KINDS = {
    name: Kind(name=name, severity=severity, says=says, fix=fix)
    for severity, kinds in _KINDS.items()
    for name, (says, fix) in kinds.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A place where something was found: `file:row`, and what was found there."""

    source: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A kind of problem, the number of rows that have it, and where the first ones are.

    Attributes:
        kind: the kind of problem.
        subject: the variant ("empty answer", "two user turns in a row"); "" if there is only one.
        count: the number of rows (for system prompts: of distinct prompts).
        spots: the first places.
    """

    kind: Kind
    count: int
    subject: str = ""
    spots: tuple[Spot, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the finding for JSON."""
        return {
            "kind": self.kind.name,
            "severity": self.kind.severity,
            "subject": self.subject,
            "count": self.count,
            "means": self.kind.says,
            "fix": self.kind.fix,
            "examples": [{"source": spot.source, "detail": spot.detail} for spot in self.spots],
        }


@dataclass(slots=True)
class Findings:
    """Counts findings by kind and subject, and keeps the first places of each."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    spots: dict[tuple[str, str], list[Spot]] = field(default_factory=dict)

    def add(self, kind: str, source: Source, detail: str = "", *, subject: str = "") -> None:
        """Adds one row with this problem."""
        key = (kind, subject)
        self.counts[key] += 1
        seen = self.spots.setdefault(key, [])
        if len(seen) < EXAMPLES:
            seen.append(Spot(source=str(source), detail=detail))

    def add_counted(self, kind: str, count: int, spots: Iterable[Spot], *, subject: str = "") -> None:
        """Adds a finding that was counted elsewhere."""
        self.counts[kind, subject] = count
        self.spots[kind, subject] = list(spots)[:EXAMPLES]

    def sorted(self, *, milder: Iterable[str] = ()) -> tuple[Finding, ...]:
        """Returns all findings, by severity and then by frequency.

        Args:
            milder: kinds of errors that the user has requested, and that therefore count as warnings.
        """
        kinds = KINDS | {name: replace(KINDS[name], severity="warning") for name in milder}
        found = [
            Finding(kind=kinds[name], subject=subject, count=count, spots=tuple(self.spots[name, subject]))
            for (name, subject), count in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda one: (SEVERITIES.index(one.kind.severity), -one.count)))
