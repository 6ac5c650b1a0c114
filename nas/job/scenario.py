"""The scenario of a request, as cost models take it. Knows no machine."""

from cost_models.scenario import Scenario
from nas.job.request import Request


def scenario_of(request: Request) -> Scenario:
    """The scenario of a request, in the form that cost models use."""
    asked = request.scenario
    return Scenario(
        asked.device,
        request.dtype,
        asked.batch,
        asked.prompt_tokens,
        asked.generated_tokens,
        asked.threads,
        request.engine,
        asked.tensor_parallel,
        asked.kv_cache,
    )
