"""All parts of the decoder: each alone, all together, and none, against a model in plain loops."""

import itertools
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.pretraining.auxiliary import AuxiliaryConfig, auxiliary_parts
from gpr_rl.pretraining.mtp import mtp_loss
from gpr_rl.schema import Targets, Tokens
from tests.gpr_rl.models.model_inputs import (
    SPEC,
    E,
    I,
    O,
    U,
    make_model,
    make_request,
    make_targets,
    make_tokens,
)

SWITCHES: dict[str, dict[str, Any]] = {
    "hybrid_off": {"hybrid_attention": False},
    "shared_norm": {"token_aware_norm": False},
    "shared_ffn": {"token_aware_ffn": False},
    "no_thinking": {"num_thinking_tokens": 0},
    "recursions": {"num_recursions": 3, "num_hsd_layers": 3},
    "cycle": {"num_recursions": 3, "num_hsd_layers": 1},
    "time": {"relative_time": True},
    "rotary": {"attention_bias": "rotary"},
    "no_bias": {"attention_bias": "none"},
    "chunks": {"attention_chunk": 3},
    "lazy_ar": {"decoder": "lazy_ar", "num_ptd_layers": 2, "num_lazy_layers": 1},
    "refining": {"num_refining_steps": 2, "num_noise_steps": 8},
    "knowledge": {"knowledge_dim": 4},
}
SWITCHES["all"] = {
    key: value
    for name in ("recursions", "time", "chunks", "lazy_ar", "refining", "knowledge")
    for key, value in SWITCHES[name].items()
}
SWITCHES["all_fused"] = SWITCHES["all"] | {"attention_bias": "rotary", "relative_time": False}
OWN = {  # the parameters that a switch brings
    "recursions": ("hsd.router.",),
    "cycle": ("hsd.router.",),
    "time": ("hsd.blocks.0.time_bias", "hsd.blocks.1.time_bias"),
    "lazy_ar": ("ptd.decoder.fuse.", "ptd.decoder.level", "ptd.decoder.trunk_"),
    "refining": ("refiner.",),
    "knowledge": ("knowledge_slot.",),
}
LENGTHS = [9, 5, 12]
KINDS = [
    [U, O, E, I, O, E, I, E, I, O, O, E, I],
    [U, E, I, E, O, E, I, E, I],
    [U, O, O, O, O, E, O, E, I, E],
]
PROMPTS = [6, 2, 6]
POSITIONS = torch.tensor([[5, 7, 11], [1, 3, 7], [5, 7, 9]])
every_switch = pytest.mark.parametrize("switch", SWITCHES)


def _knowledge(switch: str, rows: int = 3) -> Tensor | None:
    if "knowledge_dim" not in SWITCHES[switch]:
        return None
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(2))


def _codes(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, SPEC.num_codes, (*shape, 3), generator=generator)


# --- every switch and all together: future, batch, beams, learning


@every_switch
def test_no_logit_depends_on_a_later_embedding(switch: str) -> None:
    model = make_model(**SWITCHES[switch])
    tokens, codes = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 4).codes
    layout = TokenLayout.of(tokens.kind)
    seen: list[Tensor] = []

    def watch(*call: Any) -> Tensor:
        seen.append(call[2].detach().requires_grad_())
        return seen[0]

    model.hsd.embedding.register_forward_hook(watch)
    context = model.window(tokens, POSITIONS, _knowledge(switch))
    logits = model.window_logits(context, codes)
    index = torch.arange(tokens.kind.shape[1])
    weight = torch.linspace(-1, 1, SPEC.num_codes, dtype=torch.float64)
    for row, p in itertools.product(range(3), range(3)):
        for head, level in ((0, 0), (3, 2)):
            one = (logits[row, p, head, level] * weight).sum()
            packed = torch.autograd.grad(one, seen[0], retain_graph=True)[0]
            gradient = layout.unpack(packed).abs().sum(-1)
            past = index <= POSITIONS[row, p]
            assert gradient[row, ~past].eq(0).all(), (row, p, head, level)
            assert gradient[row, past].ne(0).any(), (row, p, head, level)
            assert gradient[torch.arange(3) != row].eq(0).all()


@every_switch
def test_changing_later_events_moves_no_earlier_logit(switch: str) -> None:
    model = make_model(**SWITCHES[switch])
    tokens, targets = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 4)
    logits = model.mtp_logits(tokens, targets, _knowledge(switch))
    for p in range(3):
        changed = make_tokens(KINDS, PROMPTS, seed=1)
        later = torch.arange(tokens.kind.shape[1]) > POSITIONS[:, p : p + 1]
        for name in ("kind", "codes", "action", "time_gap", "context"):
            old, new = getattr(tokens, name), getattr(changed, name)
            if name == "kind":
                new = torch.where(old == O, I, old)
            mask = later.view(*later.shape, *[1] * (old.dim() - 2))
            setattr(changed, name, torch.where(mask, new, old))
        changed.user, changed.preference = tokens.user, tokens.preference
        after = model.mtp_logits(changed, targets, _knowledge(switch))
        moved = (after - logits).abs().flatten(2).amax(-1)
        assert (moved[:, : p + 1] < 1e-10).all()
        if p < 2:
            assert (moved[:, -1] > 1e-6).all()


@every_switch
def test_padding_and_batch_change_nothing(switch: str) -> None:
    model, request = make_model(**SWITCHES[switch]).float(), make_request(LENGTHS)
    knowledge, codes = _knowledge(switch), _codes(3, 4)
    together = model.encode(request, knowledge)
    logits, value = model.logits(together, codes), model.hte(together, codes).value
    for row, length in enumerate(LENGTHS):
        alone = request[row : row + 1].clone()
        for name in ("kind", "codes", "action", "time_gap", "context"):
            setattr(alone.tokens, name, getattr(alone.tokens, name)[:, :length])
        own = model.encode(alone, None if knowledge is None else knowledge[row : row + 1])
        got = model.logits(own, codes[row : row + 1])
        torch.testing.assert_close(got[0], logits[row], rtol=0, atol=1e-5)
        judged = model.hte(own, codes[row : row + 1]).value
        torch.testing.assert_close(judged[0], value[row], rtol=0, atol=1e-5)


@every_switch
def test_a_window_position_equals_the_request_made_there(switch: str) -> None:
    model = make_model(**SWITCHES[switch])
    tokens, targets = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 4)
    knowledge = _knowledge(switch)
    logits = model.mtp_logits(tokens, targets, knowledge)
    for p in range(3):
        cut = tokens.clone()
        later = torch.arange(tokens.kind.shape[1]) > POSITIONS[:, p : p + 1]
        cut.kind = tokens.kind.masked_fill(later, 0)
        own = model.window(cut, POSITIONS[:, p : p + 1], knowledge)
        policy = model.logits(own, targets.codes[:, p, :1])
        torch.testing.assert_close(policy[:, 0], logits[:, p, 0], rtol=0, atol=1e-10)


@every_switch
def test_beams_equal_known_paths(switch: str) -> None:
    model = make_model(**SWITCHES[switch]).float()
    context = model.encode(make_request(LENGTHS), _knowledge(switch))
    codes = _codes(3, 4)
    known = model.logits(context, codes).log_softmax(-1)
    values = model.hte(context, codes).value
    log_prob, value, cache = model.begin(context)
    steps = [(log_prob.expand(-1, 4, -1), value.expand(-1, 4))]
    for level in range(2):
        parent = torch.arange(4).expand(3, -1) if level else torch.zeros(3, 4, dtype=torch.int64)
        log_prob, value, cache = model.extend(context, cache, parent, codes[..., level])
        steps.append((log_prob, value))
    for level, (log_prob, value) in enumerate(steps):
        torch.testing.assert_close(log_prob, known[:, :, level], rtol=0, atol=1e-5)
        torch.testing.assert_close(value, values[:, :, level], rtol=0, atol=1e-5)


def _tiny_set() -> tuple[Tokens, Targets]:
    targets = make_targets(POSITIONS, 2)
    targets.legal_mask[:] = True
    return make_tokens(KINDS, PROMPTS), targets


@every_switch
def test_every_switch_trains(switch: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = HHDConfig(dim=16, num_heads=2, num_mtp_heads=2, **SWITCHES[switch])
        model = HHD(config, SPEC)
    tokens, targets = _tiny_set()
    optimizer = torch.optim.Adam(model.policy_parameters(), lr=1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(50):
        optimizer.zero_grad()
        context = model.window(tokens, targets.position, _knowledge(switch))
        logits = model.window_logits(context, targets.codes)
        policy = mtp_loss(logits, targets, model.head_logits, 0.0)
        parts = auxiliary_parts(model, context, targets, generator)
        beside = AuxiliaryConfig().total(parts)
        (policy + beside).backward()
        for name, parameter in model.named_parameters():
            if not name.startswith("hte."):
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
        losses.append(policy.item())
        if len(losses) == 1:
            own = OWN.get(switch, ())
            for prefix in own:
                mine = [p for n, p in model.named_parameters() if n.startswith(prefix)]
                assert mine
                assert all(p.grad is not None and p.grad.ne(0).any() for p in mine), prefix
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_model_comes_back_from_its_configuration() -> None:
    model = make_model(**SWITCHES["all"])
    again = HHD(HHDConfig(**asdict(model.config)), SPEC).double()
    again.load_state_dict(model.state_dict())
    request, knowledge = make_request(LENGTHS), _knowledge("all")
    before, after = model.encode(request, knowledge), again.encode(request, knowledge)
    torch.testing.assert_close(after.start, before.start, rtol=0, atol=1e-12)


# --- no part: a plain base, number by number


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / math.sqrt(variance + 1e-5) * weight + bias


def _silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def _mix(query: Tensor, keys: list[Tensor], values: list[Tensor], bias: Tensor | None) -> Tensor:
    """Two-head attention of one query; `bias` [keys, H]."""
    out = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        score = [float(query[part] @ key[part]) / 2 for key in keys]
        if bias is not None:
            score = [a + float(b) for a, b in zip(score, bias[:, head], strict=True)]
        weight = [math.exp(a) for a in score]
        total = sum(weight)
        terms = [w / total * v[part] for w, v in zip(weight, values, strict=True)]
        out.append(torch.stack(terms).sum(0))
    return torch.cat(out)


class PlainBase:
    """HSTU-like blocks with one norm and one FFN, causal, and a decoder without thinking tokens."""

    def __init__(self, model: HHD) -> None:
        self.p = {name: x.detach() for name, x in model.state_dict().items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = self.p[f"{name}.weight"] @ x
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        return _norm(x, weight.flatten(), bias.flatten())

    def understand(self, x: list[Tensor]) -> list[Tensor]:
        for layer in range(2):
            at = f"hsd.blocks.{layer}."
            parts = [
                _silu(self.linear(at + "uvqk", self.norm(at + "attention_norm", a))) for a in x
            ]
            gates, values, queries, keys = zip(*(part.chunk(4) for part in parts), strict=True)
            table, out = self.p[at + "distance_bias"], []
            for i, token in enumerate(x):
                near = [
                    i - j if i - j < 8 else 8 + int(2 * math.log2((i - j) / 8))
                    for j in range(i + 1)
                ]
                bias = table[torch.tensor(near)]
                found = _mix(queries[i], list(keys[: i + 1]), list(values[: i + 1]), bias)
                gated = self.norm(at + "output_norm", found) * gates[i]
                token = token + self.linear(at + "output", gated)
                inner = self.norm(at + "ffn_norm", token)
                hidden = self.p[at + "ffn.weight_in"][0] @ inner + self.p[at + "ffn.bias_in"][0]
                change = self.p[at + "ffn.weight_out"][0] @ hidden.clamp_min(0)
                out.append(token + change + self.p[at + "ffn.bias_out"][0])
            x = out
        return [self.norm("hsd.norm", a) for a in x]

    def log_probs(self, h: list[Tensor], codes: list[int]) -> list[Tensor]:
        """Log-probabilities of every code at levels 1..L, along `codes`."""
        at = "ptd.decoder."
        x = self.p[at + "state.weight"] @ h[-1] + self.p[at + "shared"][0]
        memory = [self.linear(at + "memory", a).chunk(2) for a in h]
        seen_keys: list[Tensor] = []
        seen_values: list[Tensor] = []
        out, block = [], at + "blocks.0."
        for level in range(3):
            qkv = self.linear(block + "qkv", self.norm(block + "self_norm", x))
            query, key, value = qkv.chunk(3)
            seen_keys.append(key)
            seen_values.append(value)
            x = x + self.linear(block + "self_output", _mix(query, seen_keys, seen_values, None))
            query = self.linear(block + "cross_query", self.norm(block + "cross_norm", x))
            found = _mix(query, [m[0] for m in memory], [m[1] for m in memory], None)
            x = x + self.linear(block + "cross_output", found)
            inner = self.linear(block + "ffn_in", self.norm(block + "ffn_norm", x)).clamp_min(0)
            x = x + self.linear(block + "ffn_out", inner)
            logits = self.p["ptd.output"][level] @ self.p["ptd.head"][0, 0]
            logits = logits @ self.norm(at + "norm", x)
            out.append(logits - logits.exp().sum().log())
            if level < 2:
                x = self.p[at + "codes"][level * SPEC.num_codes + codes[level]]
        return out


def test_with_all_parts_off_it_is_the_plain_base() -> None:
    off = {"hybrid_attention": False, "token_aware_norm": False, "token_aware_ffn": False}
    model = make_model(num_thinking_tokens=0, **off)
    request = make_request(LENGTHS)
    codes = _codes(3, 2)
    got = model.logits(model.encode(request), codes).log_softmax(-1)
    layout = TokenLayout.of(request.tokens.kind)
    x = layout.unpack(model.hsd.embedding(request.tokens, layout)).detach()
    base = PlainBase(model)
    for row, length in enumerate(LENGTHS):
        h = base.understand(list(x[row, :length]))
        for path in range(2):
            want = torch.stack(base.log_probs(h, codes[row, path].tolist()))
            torch.testing.assert_close(got[row, path], want, rtol=0, atol=1e-10)


def test_the_default_has_no_part_that_can_be_off() -> None:
    # Checkpoints and published numbers are those of this model: same parameters, same order.
    config = HHDConfig()
    assert (config.num_recursions, config.relative_time, config.attention_chunk) == (0, False, 0)
    assert (config.attention_bias, config.decoder) == ("distance", "plain")
    assert (config.num_refining_steps, config.knowledge_dim) == (0, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HHD(config, SPEC)
    names = [name for name, _ in model.named_parameters()]
    assert names[:3] == ["head_logits", "hsd.embedding.table", "hsd.blocks.0.distance_bias"]
    assert len(names) == 90
    # Of the weights as they start: what a change in the order of draws would move.
    total = sum(p.detach().double().abs().sum() for p in model.parameters())
    assert total.item() == pytest.approx(24095.241154356725, rel=1e-9)
    assert model.ptd.head[-1, -1, -1, -1].item() == pytest.approx(0.14036254584789276, rel=1e-6)
