"""The KL of two models' logits, made a few rows at a time: the same number, the same gradient, a bounded memory."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from blocklib.tables import LogitHead
from nas.scoring.fidelity import numbers_at_once
from nas.scoring.logit_kl import logit_kl

VOCABULARY, HIDDEN = 50_257, 16


def example(
    vocabulary: int = VOCABULARY, tokens: int = 211, scaling: float = 1.0
) -> tuple[Tensor, Tensor, LogitHead, LogitHead]:
    """Hidden states of a model and of its parent [2, tokens, HIDDEN], and a head of each."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, tokens, HIDDEN, generator=generator) for _ in range(2)]
    sizes = SimpleNamespace(hidden_size=HIDDEN, vocab_size=vocabulary, logits_scaling=scaling)
    heads = [LogitHead(sizes).requires_grad_(False) for _ in range(2)]
    for head in heads:
        head.weight.copy_(0.5 * torch.randn(vocabulary, HIDDEN, generator=generator))
    return states[0].requires_grad_(), states[1], heads[0], heads[1]


def at_once(model_BTD: Tensor, parent_BTD: Tensor, head_VD: Tensor, parent_head_VD: Tensor) -> Tensor:
    """The definition."""
    parent_log = (parent_BTD @ parent_head_VD.T).log_softmax(-1)
    model_log = (model_BTD @ head_VD.T).log_softmax(-1)
    return (parent_log.exp() * (parent_log - model_log)).sum(-1).mean()


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "scaling"), [(VOCABULARY, 211, 1.0), (7, 1, 1.0), (64, 12, 1.0), (64, 12, 8.0)]
)
def test_it_is_the_kl_of_all_logits_and_so_is_its_gradient(vocabulary: int, tokens: int, scaling: float) -> None:
    model, parent, head, parent_head = example(vocabulary, tokens, scaling)
    loss = logit_kl(model, parent, head, parent_head)
    (gradient,) = torch.autograd.grad(3 * loss, model)
    exact = model.detach().double().requires_grad_()
    expected = at_once(exact, parent.double(), head.weight.double() / scaling, parent_head.weight.double() / scaling)
    (expected_gradient,) = torch.autograd.grad(3 * expected, exact)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    # On some processors float32 is further off, whoever sums: there it may be about as far off as the definition is.
    plain = model.detach().requires_grad_()
    (plain_gradient,) = torch.autograd.grad(
        3 * at_once(plain, parent, head.weight / scaling, parent_head.weight / scaling), plain
    )
    rounding = 1.5 * (plain_gradient - expected_gradient).abs().max()
    assert (gradient - expected_gradient).abs().max() <= max(2e-6 * expected_gradient.abs().max(), rounding)


def test_the_example_takes_several_pieces() -> None:
    assert 2 * (8 * numbers_at_once(torch.device("cpu")) // VOCABULARY) < 2 * 211


def test_a_model_that_is_its_parent_loses_nothing_and_is_pushed_nowhere() -> None:
    model, _, head, _ = example(64, 12)
    loss = logit_kl(model, model.detach(), head, head)
    loss.backward()
    assert loss.item() == 0
    assert model.grad is not None
    assert model.grad.abs().max() == 0


def test_a_head_that_is_to_be_trained_is_refused() -> None:
    model, parent, head, parent_head = example(64, 12)
    with pytest.raises(ValueError, match="freeze it"):
        logit_kl(model, parent, head.requires_grad_(), parent_head)


_MEASURED = """
import resource, sys
from copy import deepcopy
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from parents import child_of, random_ids, random_parent
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing
from nas.stages.evaluate import evaluate

def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def step(tokens, folder):
    ids = random_ids(parent, sequences=4, tokens=tokens)
    once = Healing(tokens=ids.numel(), batch=4, learning_rate=1e-4, warmup=0.0, hidden_weight=1.0)
    list(heal(parent.model, child, ids, once, Path(sys.argv[1], folder)))
    evaluate(parent.model, child, ids)

torch.set_num_threads(1)
parent = random_parent(vocab_size={vocabulary}, max_position_embeddings=1024)
child = deepcopy(child_of(parent, "kv2+ffn16 skip+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+skip"))
step(8, "small")  # Libraries load here.
before = peak_bytes()
step({tokens}, "large")
print(peak_bytes() - before)
"""


def test_healing_and_evaluating_hold_less_than_one_models_logits(tmp_path: Path) -> None:
    """Measured in a process of its own. With all logits at once there would be five such tensors and more."""
    vocabulary, tokens = 65_536, 512
    script = _MEASURED.format(tests=str(Path(__file__).parent), vocabulary=vocabulary, tokens=tokens)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 4 * tokens * vocabulary * 4
