"""What `honed data check` can find: a table of kinds, and the collector that counts them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from honed.data.example import Source

SEVERITIES = ("error", "warning", "hint")
EXAMPLES = 3  # places shown for each finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One thing that can be wrong.

    Attributes:
        name: for JSON and tests.
        severity: "error" (training as it stands teaches something wrong, or cannot use the rows), "warning" (it
            usually costs quality), "hint" (worth a look).
        says: what it means, in a sentence.
        fix: how to mend it.
    """

    name: str
    severity: str
    says: str
    fix: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="unusable",
            severity="error",
            says="These rows cannot be trained on; training stops at them unless data.bad_rows=drop.",
            fix="mend the rows named, or leave them out with data.bad_rows=drop (they stay in the ledger)",
        ),
        Kind(
            name="untrained_stop",
            severity="error",
            says="Answers end in a token at which generation does not stop, so the model would learn to run on.",
            fix="use a chat template that closes answers with the end token, or give the tokenizer an eos_token",
        ),
        Kind(
            name="control_token",
            severity="warning",
            says="A message spells a control token; honed trains it as plain text, other tools may end the turn there.",
            fix="remove it from the message, unless the text is about such tokens",
        ),
        Kind(
            name="tool_call",
            severity="error",
            says="The arguments of a tool call are not a JSON object, so the model would learn calls that fail.",
            fix="mend the JSON of these calls (an object in double quotes, no trailing commas)",
        ),
        Kind(
            name="eval_overlap",
            severity="error",
            says="Rows are in the evaluation file as well, so its loss would measure memory.",
            fix="take these rows out of one of the two files",
        ),
        Kind(
            name="several_formats",
            severity="warning",
            says="Rows have the columns of several formats, and only one of them is trained.",
            fix="choose with data.format=NAME (from Python: data_format), or take the other columns out",
        ),
        Kind(
            name="empty_reasoning",
            severity="warning",
            says="Trained answers begin with an empty reasoning block: asked to think, the model learns not to.",
            fix="give the answers their reasoning; or train them as they are served without thinking: "
            "data.train_on=assistant data.template_arguments={enable_thinking: false}, if the template knows it",
        ),
        Kind(
            name="overlong",
            severity="warning",
            says="Rows are longer than max_length: overlong=drop leaves them out, truncate cuts, split divides them.",
            fix="raise data.max_length, shorten the rows, or accept it; data.overlong chooses what happens",
        ),
        Kind(
            name="foreign_stop",
            severity="warning",
            says="Answers end in a control token that the model's own configuration does not stop at.",
            fix="honed saves it as a stop token with the trained model; set it too where another server is used",
        ),
        Kind(
            name="two_bos",
            severity="warning",
            says="Texts begin with the BOS token twice, and a served prompt has it once.",
            fix="take one out of the rows, or give messages in place of what a template made of them",
        ),
        Kind(
            name="border",
            severity="warning",
            says="Where the answer begins, prompt and answer as one text have other tokens than each by itself.",
            fix='let answers begin with white space, not prompts end with it ("is" + " Rome"), and serve such prompts; '
            "where prompts are served as they stand here, this is trained as it is served",
        ),
        Kind(
            name="open_reasoning",
            severity="warning",
            says="Answers open a <think> block and never close it, so the model would learn to think without an end.",
            fix="complete or remove these rows; answers that were cut off at a limit of tokens look like this",
        ),
        Kind(
            name="train_flag",
            severity="warning",
            says="Messages say under a key of another tool whether they are trained, and it is not read.",
            fix="name it: data.columns={train: KEY} (or {weight: KEY}, for numbers); or take it out of the rows",
        ),
        Kind(
            name="role_order",
            severity="warning",
            says="Roles do not alternate as in a conversation, so the model sees what no user will send.",
            fix="join neighbouring messages of one role, and let each row begin with a user and end with an answer",
        ),
        Kind(
            name="empty_message",
            severity="warning",
            says="A question or system prompt holds no text.",
            fix="fill it in or remove the row",
        ),
        Kind(
            name="duplicate",
            severity="warning",
            says="Rows repeat an earlier row word for word, and weigh double in training.",
            fix="keep one of each, unless the repetition is meant",
        ),
        Kind(
            name="eval_near",
            severity="warning",
            says="Rows are nearly the same as rows of the evaluation file, or ask one of its questions.",
            fix="take them out of one of the two files, or split by groups of similar rows",
        ),
        Kind(
            name="mojibake",
            severity="warning",
            says="Text was decoded with the wrong character set, and the model would learn to write it so.",
            fix="decode the source again as UTF-8 (or repair it with a tool such as ftfy)",
        ),
        Kind(
            name="invisible",
            severity="warning",
            says="Text holds characters that nobody sees, and the model would learn to write them.",
            fix="take them out (text.replace('\\u200b', '')), or put a line end in place of a separator; texts copied "
            "from web pages and PDF files hold them, and some hide instructions",
        ),
        Kind(
            name="repeated_key",
            severity="warning",
            says="JSON objects have a key twice: the last value is trained, and those before it are lost.",
            fix="give each value a key of its own, or take one out; json.dumps never writes a key twice",
        ),
        Kind(
            name="secret",
            severity="warning",
            says="Something looks like an access key or a private key; a model can be made to repeat it.",
            fix="revoke the key and replace it in the data",
        ),
        Kind(
            name="near_duplicate",
            severity="hint",
            says="Rows share at least about 80% of their three-word sequences with an earlier row.",
            fix="keep one of each group where variety matters",
        ),
        Kind(
            name="system_prompts",
            severity="hint",
            says="Rows differ in their system prompt; at inference the model should get one that it was trained with.",
            fix="give all rows the same with data.system, unless the difference is meant",
        ),
        Kind(
            name="rare_script",
            severity="hint",
            says="Rows are written in a script that hardly any other row uses.",
            fix="check that these rows belong here",
        ),
        Kind(
            name="long_row",
            severity="hint",
            says="Rows are far longer than the rest, and set how much memory a batch needs.",
            fix="check them for pasted logs or whole books; data.max_length leaves them out",
        ),
        Kind(
            name="short_answer",
            severity="hint",
            says="Answers of a few characters among long ones.",
            fix="check that they answer the question",
        ),
        Kind(
            name="personal_data",
            severity="hint",
            says="Something looks like an e-mail address or a phone number (shown masked here).",
            fix="replace it, unless it is public or made up",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A place where something was found: `file:row`, and what was found there."""

    source: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of fault, how many rows have it and where the first ones are.

    Attributes:
        kind: what it is.
        subject: which one of its sort ("empty answer", "two user turns in a row"); "" where there is only one.
        count: rows (for system prompts: distinct prompts).
        spots: the first places.
    """

    kind: Kind
    count: int
    subject: str = ""
    spots: tuple[Spot, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    spots: dict[tuple[str, str], list[Spot]] = field(default_factory=dict)

    def add(self, kind: str, source: Source, detail: str = "", *, subject: str = "") -> None:
        """One row with this fault."""
        key = (kind, subject)
        self.counts[key] = self.counts.get(key, 0) + 1
        seen = self.spots.setdefault(key, [])
        if len(seen) < EXAMPLES:
            seen.append(Spot(source=str(source), detail=detail))

    def add_counted(self, kind: str, count: int, spots: Iterable[Spot], *, subject: str = "") -> None:
        """A finding counted elsewhere."""
        self.counts[kind, subject] = count
        self.spots[kind, subject] = list(spots)[:EXAMPLES]

    def sorted(self, *, milder: Iterable[str] = ()) -> tuple[Finding, ...]:
        """All findings, the gravest first, the most frequent first among those.

        Args:
            milder: kinds of errors that the user has asked for, and that therefore count as warnings.
        """
        kinds = {name: _as_warning(KINDS[name]) if name in set(milder) else KINDS[name] for name in KINDS}
        found = [
            Finding(kind=kinds[name], subject=subject, count=count, spots=tuple(self.spots[name, subject]))
            for (name, subject), count in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda one: (SEVERITIES.index(one.kind.severity), -one.count)))


def _as_warning(kind: Kind) -> Kind:
    return Kind(name=kind.name, severity="warning", says=kind.says, fix=kind.fix)
