"""Whether the sequences that a request asks for fit into the positions its parent has. Imports no torch."""

from nas.errors import JobError
from nas.job.request import Request


def check_positions(request: Request, positions: int) -> None:
    """Raise JobError, naming the key, where more tokens are asked for than there are positions."""
    asked = request.scenario
    # The last token that is generated is not read any more.
    longest = {
        "data.sequence_length": request.data.sequence_length,
        "scenario": asked.prompt_tokens + asked.generated_tokens - 1,
    }
    for place, tokens in longest.items():
        if tokens > positions:
            if positions < 1:
                raise JobError(f"the parent's config.json says that it has {positions} positions; correct it")
            raise JobError(f"{place}: {tokens} tokens are more than the {positions} the parent has positions for")
