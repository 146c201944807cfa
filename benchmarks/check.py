"""Checks that the documents say what the results say, and that those are of today's rule.

    faults(results)      # a line for each fault; none where all is well
    write(results)       # puts the numbers of the results into the documents

Every claim of `benchmarks.claims` has to stand in its file with the numbers of the results, or not at all where results
of today's rule are missing. What lies between the marks `<!-- evidence -->` and `<!-- /evidence -->` may hold no number
but those of claims, of links and of names such as `word2vec_moby`. The pages beside the results have to be those that
`report` would write, and the README's picture has to be of today's rule.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import picture, report, rule, store
from benchmarks.claims import CLAIMS, Block, Sentence

ROOT = Path(__file__).parents[1]
Claims = Sequence[Sentence | Block]
Span = tuple[int, int]

_WRITE = "python -m benchmarks check --write"
_GAP = re.compile(r"\{(\w+)\}")
_ANYTHING = r"((?:(?![.!?] ).){1,900}?)"  # in place of a number or of a list, within a sentence
_MARKED = re.compile(r"<!-- evidence -->(.*?)(?:<!-- /evidence -->|\Z)", re.DOTALL)
# What may hold digits without a claim: targets of links, names that begin with a letter, marks.
_NO_NUMBER = re.compile(r"\]\([^)]*\)|\b[A-Za-z_]\w*|<!--.*?-->", re.DOTALL)


def faults(results: store.Store, root: Path = ROOT) -> Iterator[str]:
    """A line for each fault: file, line, what stands there, what the results say, which command mends it."""
    yield from document_faults(results, root)
    yield from page_faults(results, root)
    yield from picture.faults(results, root)


def document_faults(results: store.Store, root: Path = ROOT, claims: Claims = CLAIMS) -> Iterator[str]:
    """Those of README and docs."""
    today = rule.Today(results)
    documents = {path: Document(path) for path in documents_in(root)}
    spans: dict[Path, list[Span]] = {path: [] for path in documents}
    for claim in claims:
        document = documents[root / claim.file]
        found = _find(claim, document)
        if found:
            spans[document.path].append(found[0])
        check = _block_faults if isinstance(claim, Block) else _sentence_faults
        yield from check(claim, document, found, _expected(claim, today))
    for path, document in documents.items():
        yield from _numbers_without_a_claim(document, spans[path], path.relative_to(root))


def page_faults(results: store.Store, root: Path = ROOT) -> Iterator[str]:
    """Those of the pages beside the results."""
    with report.no_pictures():
        pages = report.pages_of(results)
    for name, expected in pages.items():
        path = results.root / name
        said = path.read_text(encoding="utf-8") if path.exists() else ""
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        yield from _first_difference(str(shown), 1, said, expected, "python -m benchmarks report")


def write(results: store.Store, root: Path = ROOT, claims: Claims = CLAIMS) -> list[Path]:
    """Puts the numbers of the results into the claims that stand somewhere. Returns the files that changed."""
    today, changed = rule.Today(results), []
    for claim in claims:
        document = Document(root / claim.file)
        text = _with_numbers(claim, document, today)
        if text != document.text:
            document.path.write_text(text, encoding="utf-8")
            changed.append(document.path)
    return list(dict.fromkeys(changed))


def documents_in(root: Path) -> list[Path]:
    """Those whose numbers are checked."""
    names = ("README.md", "benchmarks/README.md", "benchmarks/STUDY.md")
    return [*filter(Path.exists, (root / name for name in names)), *sorted((root / "docs").rglob("*.md"))]


class Document:
    """A file, in which a sentence is found wherever its lines break."""

    def __init__(self, path: Path):
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        words = list(re.finditer(r"\S+", self.text))
        self._squeezed = " ".join(word[0] for word in words)
        self._starts, self._places, place = [], [], 0  # of each word, in the squeezed text and in the file
        for word in words:
            self._starts.append(place)
            self._places.append(word.start())
            place += len(word[0]) + 1

    def find(self, pattern: str) -> list[Span] | None:
        """Where a pattern, whose words are one space apart, begins and ends in the file; then each of its groups."""
        match = re.search(pattern, self._squeezed)
        if match is None:
            return None
        spans = (match.span(group) for group in range(len(match.groups()) + 1))
        return [(self._place(begin), self._place(end - 1) + 1) for begin, end in spans]

    def says(self, span: Span) -> str:
        return self.text[slice(*span)]

    def line(self, place: int) -> int:
        return self.text.count("\n", 0, place) + 1

    def _place(self, place: int) -> int:
        word = bisect.bisect_right(self._starts, place) - 1
        return self._places[word] + place - self._starts[word]


def _expected(claim: Sentence | Block, today: rule.Today) -> str | None:
    """What should stand there; None where nothing should."""
    if isinstance(claim, Block):
        content = claim.content(today)
        return None if content is None else f"\n\n{content}\n\n"  # Markdown wants a table by itself
    numbers = claim.numbers(today)
    return None if numbers is None else claim.text.format_map(numbers)


def _find(claim: Sentence | Block, document: Document) -> list[Span] | None:
    """Where a claim stands, with these numbers or with others; then each of its gaps."""
    if isinstance(claim, Block):
        begin, end = f"<!-- begin {claim.name} -->", f"<!-- end {claim.name} -->"
        first, last = document.text.find(begin), document.text.find(end)
        return [(first + len(begin), last)] if 0 <= first < last else None
    # The sentence ends where its text does: the point in "0.97" is not its end.
    return document.find(_ANYTHING.join(map(re.escape, re.split(r"\{\w+\}", claim.text))) + r"(?!\w)")


def _with_numbers(claim: Sentence | Block, document: Document, today: rule.Today) -> str:
    """The text of the document with the numbers of the results; its line breaks stay where they are."""
    spans, text = _find(claim, document), document.text
    if spans is None:
        return text
    if isinstance(claim, Block):
        (begin, end), expected = spans[0], _expected(claim, today)
        return text if expected is None else f"{text[:begin]}{expected}{text[end:]}"
    numbers = claim.numbers(today)
    gaps = [] if numbers is None else list(zip(spans[1:], _GAP.findall(claim.text), strict=True))
    for (begin, end), name in reversed(gaps):
        if text[begin:end].split() != numbers[name].split():
            text = f"{text[:begin]}{numbers[name]}{text[end:]}"
    return text


def _block_faults(claim: Block, document: Document, found: list[Span] | None, expected: str | None) -> Iterator[str]:
    if found is None:
        marks = f"<!-- begin {claim.name} --> and <!-- end {claim.name} -->"
        yield f"{claim.file}:1: the table {claim.name} is missing. Put {marks} where it belongs, then: {_WRITE}"
        return
    said, first = document.says(found[0]), document.line(found[0][0])
    if expected is not None:
        yield from _first_difference(claim.file, first, said, expected, _WRITE)
    elif said.strip():
        yield f"{claim.file}:{first}: the table {claim.name} stands. {_no_result(claim)}"


def _sentence_faults(
    claim: Sentence, document: Document, found: list[Span] | None, expected: str | None
) -> Iterator[str]:
    if found is None:
        if expected is not None:
            yield f'{claim.file}:1: the sentence "{expected}" is missing. Write it, or delete its claim.'
        return
    said = " ".join(document.says(found[0]).split())
    place = f"{claim.file}:{document.line(found[0][0])}"
    if expected is None:
        yield f'{place}: stands "{said}". {_no_result(claim)}'
    elif said != expected:
        yield f'{place}: stands "{said}". The results say "{expected}". {_WRITE}'


def _no_result(claim: Sentence | Block) -> str:
    return (
        f"No result of today's rule, {rule.fingerprint()}, says it. Delete it; or, if the rule gives the same results "
        f"as before: python -m benchmarks vouch; or else: {claim.command}"
    )


def _numbers_without_a_claim(document: Document, spans: Sequence[Span], name: Path) -> Iterator[str]:
    text = list(document.text)
    for begin, end in [*spans, *(match.span() for match in _NO_NUMBER.finditer(document.text))]:
        text[begin:end] = " " * (end - begin)
    rest = "".join(text)
    for marked in _MARKED.finditer(document.text):
        for number in re.compile(r"\d[\d.,]*").finditer(rest, *marked.span()):
            yield (
                f"{name}:{document.line(number.start())}: stands {number[0]}, which is of no claim. Add one to "
                "benchmarks/claims.py, or write it as a word if it is no result."
            )


def _first_difference(name: str, first: int, said: str, expected: str, command: str) -> Iterator[str]:
    one, other = said.split("\n"), expected.split("\n")
    for offset in range(max(len(one), len(other))):
        stands, should = (lines[offset] if offset < len(lines) else "" for lines in (one, other))
        if stands != should:
            yield f'{name}:{first + offset}: stands "{stands[:300]}". The results say "{should[:300]}". {command}'
            return
