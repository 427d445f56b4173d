"""An engine without a model: made-up text in microseconds, for tests, dry runs and measuring everything else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.seeds import seed_for

END_TOKEN = 0
# fmt: off
VOCABULARY = (
    "the", "a", "one", "this", "each", "some", "water", "river", "stone", "light", "garden", "letter", "window",
    "city", "road", "music", "friend", "morning", "table", "answer", "winter", "number", "color", "map", "engine",
    "ocean", "bridge", "story", "teacher", "question", "small", "large", "quiet", "bright", "simple", "early", "old",
    "new", "green", "careful", "useful", "open", "warm", "moves", "holds", "shows", "brings", "keeps", "follows",
    "opens", "makes", "finds", "turns", "needs", "begins", "ends", "slowly", "often", "always", "never", "well",
    "here", "there", "because", "while", "before", "after", "under", "over", "with", "without", "from", "into", "and",
    "but", "so",
)
# fmt: on


class ScriptedEngine:
    """Answers of 3 to 40 words, a function of (prompt id, seed) alone; at temperature 0 of the prompt id alone.

    A token is a word: its id is 1 + its place in VOCABULARY, END_TOKEN closes an answer that stopped by itself, and an
    answer longer than ``max_new_tokens`` is cut (finish "length"). The log-prob is made up, finite and negative. There
    is no tokenizer, so ``stop_token_ids`` mean nothing here.
    """

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Completion]:
        for request in requests:
            for k, seed in enumerate(request.seeds):
                stream = seed if params.temperature > 0 else 0
                rng = random.Random(seed_for("scripted text", request.prompt_id, stream))
                words = rng.choices(range(len(VOCABULARY)), k=rng.randint(3, 40))
                tokens = [*(1 + w for w in words), END_TOKEN]
                finish = "stop" if len(tokens) <= params.max_new_tokens else "length"
                tokens = tokens[: params.max_new_tokens]
                text = " ".join(VOCABULARY[t - 1] for t in tokens if t != END_TOKEN)
                logprob = -len(tokens) * (0.5 + rng.random())
                yield Completion(request.prompt_id, k, text, tuple(tokens), finish, logprob)

    def close(self) -> None: ...
