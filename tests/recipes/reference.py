"""Examples made of real text that every Python has: the language reference in `pydoc_data.topics`.

No package ships questions with answers, so they are made: a sentence with one of its code literals blanked out is the
question, the paragraphs around it are the context, the literal is the answer. Choices are the sentence that really
follows and sentences from elsewhere; pairs are neighbouring sentences.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pydoc_data.topics import topics

LITERAL = re.compile(r'"([A-Za-z_][^"\n]{2,30})"')


def paragraphs() -> list[str]:
    """The paragraphs of prose, each on one line."""
    found = {
        " ".join(part.split())
        for text in topics.values()
        for part in text.split("\n\n")
        if re.match(r'\s*[A-Z"]', part) and part.rstrip().endswith(".")
    }
    return sorted(part for part in found if 100 < len(part) < 1200)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph."""
    return [part for part in re.split(r"(?<=[.])\s+(?=[A-Z\"])", paragraph) if len(part) > 30]


def questions(seed: int = 0, unanswerable: float = 0.0) -> list[dict]:
    """SQuAD-like rows; a share of them asks of another paragraph."""
    draw = random.Random(seed)
    texts = paragraphs()
    rows = []
    for context in texts:
        for sentence in sentences(context):
            for match in LITERAL.finditer(sentence):
                if context.count(match.group(1)) == 1:
                    question = f"{sentence[: match.start()]}what{sentence[match.end() :]}".rstrip(".") + "?"
                    answer = {"text": match.group(1), "start": context.index(match.group(1))}
                    rows.append({"question": question, "context": context, "answers": [answer]})
    draw.shuffle(rows)
    for row in rows[: int(unanswerable * len(rows))]:
        other = draw.choice(texts)
        if other != row["context"]:
            row.update(context=other, answers=[])
    return draw.sample(rows, len(rows))


def continuations(seed: int = 0, choices: int = 4) -> list[dict]:
    """Rows with a sentence, what may follow it, and which of them does; every fifth has a choice less."""
    draw = random.Random(seed)
    texts = [sentences(text) for text in paragraphs()]
    everything = [sentence for text in texts for sentence in text]
    rows = []
    for text in texts:
        for first, second in pairwise(text):
            others = [draw.choice(everything) for _ in range(choices - 1 - (len(rows) % 5 == 0))]
            options = draw.sample([second, *others], len(others) + 1)
            rows.append({"question": first, "choices": options, "answer": options.index(second)})
    return draw.sample(rows, len(rows))


def neighbours(seed: int = 0) -> list[dict]:
    """Pairs of a sentence and the one after it."""
    pairs = [
        {"text": first, "text_pair": second}
        for text in map(sentences, paragraphs())
        for first, second in pairwise(text)
    ]
    return random.Random(seed).sample(pairs, len(pairs))
