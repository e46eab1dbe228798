"""MiniMind against a slow float64 model written from the formulas, against Llama, and as a transformers model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from honed.errors import ModelError
from honed.generate.engine.engine import Engine
from honed.generate.request import Request, complete
from honed.model.load.load import load_model
from honed.model.minimind.config import YARN, MiniMindConfig
from honed.model.minimind.minimind import MiniMindForCausalLM, as_llama, count_parameters, register
from honed.model.minimind.rope import rope_frequencies
from honed.ops import attention
from tests.model.minimind.small_minimind import MOE, SHAPE, each_kind, make, some_ids


class Naive:
    """One document through the formulas, token by token and head by head, in float64."""

    def __init__(self, model: MiniMindForCausalLM) -> None:
        self.config = model.config
        self.state = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def logits(self, ids: list[int]) -> torch.Tensor:
        h = [self.state["model.embed_tokens.weight"][i] for i in ids]
        for layer in range(self.config.num_hidden_layers):
            w = {k.removeprefix(f"model.layers.{layer}."): v for k, v in self.state.items() if f"layers.{layer}." in k}
            attended = self.attention([self.norm(x, w["input_layernorm.weight"]) for x in h], w)
            h = [x + y for x, y in zip(h, attended, strict=True)]
            h = [x + self.feed(self.norm(x, w["post_attention_layernorm.weight"]), w) for x in h]
        head = self.state["model.embed_tokens.weight"]
        return torch.stack([head @ self.norm(x, self.state["model.norm.weight"]) for x in h])

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x / torch.sqrt((x * x).mean() + self.config.rms_norm_eps)

    def attention(self, xs: list[torch.Tensor], w: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        c, size = self.config, self.config.head_dim
        outputs = []
        for t in range(len(xs)):
            heads = []
            for head in range(c.num_attention_heads):
                shared = head // (c.num_attention_heads // c.num_key_value_heads)
                q = self.turned(w, "q", head, xs[t], t)
                keys = [self.turned(w, "k", shared, xs[s], s) for s in range(t + 1)]
                values = [
                    w["self_attn.v_proj.weight"][shared * size : (shared + 1) * size] @ xs[s] for s in range(t + 1)
                ]
                scores = torch.stack([q @ k / math.sqrt(size) for k in keys])
                heads.append(sum(p * v for p, v in zip(scores.softmax(0), values, strict=True)))
            outputs.append(w["self_attn.o_proj.weight"] @ torch.cat(heads))
        return outputs

    def turned(self, w: dict[str, torch.Tensor], part: str, head: int, x: torch.Tensor, position: int) -> torch.Tensor:
        size, half = self.config.head_dim, self.config.head_dim // 2
        vector = w[f"self_attn.{part}_proj.weight"][head * size : (head + 1) * size] @ x
        if self.config.qk_norm:
            vector = self.norm(vector, w[f"self_attn.{part}_norm.weight"])
        out = torch.empty_like(vector)
        for i in range(half):
            turn, length = self.turn_of(i, position)
            a, b = vector[i], vector[i + half]
            out[i], out[i + half] = (
                (a * turn.cos() - b * turn.sin()) * length,
                (b * turn.cos() + a * turn.sin()) * length,
            )
        return out

    def turn_of(self, i: int, position: int) -> tuple[torch.Tensor, float]:
        """YaRN (arXiv:2309.00071), section 3.2 and 3.4, with the whole numbers that its code rounds the borders to."""
        p, size = self.config.rope_parameters, self.config.head_dim
        frequency = p["rope_theta"] ** (-2 * i / size)
        if p["rope_type"] == "default":
            return torch.tensor(position * frequency, dtype=torch.float64), 1.0
        original, theta = p["original_max_position_embeddings"], p["rope_theta"]
        turns = (p["beta_fast"], p["beta_slow"])
        border = [size * math.log(original / (2 * math.pi * b)) / (2 * math.log(theta)) for b in turns]
        low, high = max(math.floor(border[0]), 0), min(math.ceil(border[1]), size - 1)
        ramp = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
        frequency = frequency * (1 - ramp) + frequency / p["factor"] * ramp
        length = p["attention_factor"] or 0.1 * math.log(p["factor"]) + 1
        return torch.tensor(position * frequency, dtype=torch.float64), length

    def feed(self, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
        c = self.config
        if not c.use_moe:
            return self.swiglu(x, w, "mlp")
        probability = (w["mlp.gate.weight"] @ x).softmax(0)
        chosen = sorted(range(c.num_experts), key=lambda e: -float(probability[e]))[: c.num_experts_per_tok]
        whole = sum(probability[e] for e in chosen) if c.norm_topk_prob else 1.0
        routed = sum(probability[e] / whole * self.swiglu(x, w, f"mlp.experts.{e}") for e in chosen)
        return routed + sum(self.swiglu(x, w, f"mlp.shared_experts.{e}") for e in range(c.n_shared_experts))

    @staticmethod
    def swiglu(x: torch.Tensor, w: dict[str, torch.Tensor], at: str) -> torch.Tensor:
        gate = w[f"{at}.gate_proj.weight"] @ x
        return w[f"{at}.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * (w[f"{at}.up_proj.weight"] @ x))


@each_kind
def test_logits_are_those_of_the_formulas(kind: str) -> None:
    model, ids = make(kind), some_ids(1, 11)
    # angles are float32, as in every implementation; the formulas' are float64
    torch.testing.assert_close(model(ids).logits[0], Naive(model).logits(ids[0].tolist()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "yarn"])
def test_as_llama_has_equal_logits(kind: str, dtype: torch.dtype) -> None:
    model, ids = make(kind, dtype=dtype), some_ids(2, 40)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    llama = as_llama(model)
    # Llama's norms are float32 even where the model is float64
    torch.testing.assert_close(llama(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    llama.model.embed_tokens.weight.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "weights are shared"


@pytest.mark.parametrize("kind", ["qk_norm", "moe"])
def test_as_llama_refuses_what_llama_has_not(kind: str) -> None:
    with pytest.raises(ModelError, match="Llama has none"):
        as_llama(make(kind))


def test_normalised_queries_and_keys_are_qwen3s() -> None:
    model, ids = make("qk_norm"), some_ids(2, 20)
    same = {name: getattr(model.config, name) for name in (*SHAPE, "head_dim", "rms_norm_eps", "rope_parameters")}
    qwen = Qwen3ForCausalLM(Qwen3Config(**same, tie_word_embeddings=True)).double().eval()
    qwen.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids).logits, qwen(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", [{"attention_factor": 1.0}, {}, {"beta_fast": 4.0, "beta_slow": 2.0}])
@pytest.mark.parametrize("original", [64, 2048])
def test_yarn_is_that_of_transformers(given: dict[str, float], original: int) -> None:
    parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": original}
    parameters |= given
    config = LlamaConfig(head_dim=64, max_position_embeddings=8 * original, rope_parameters=dict(parameters))
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    found, found_factor = rope_frequencies(64, parameters)
    torch.testing.assert_close(found, frequencies, rtol=1e-6, atol=0)
    assert found_factor == pytest.approx(factor)


def test_other_rope_types_are_refused() -> None:
    with pytest.raises(ValueError, match="'linear'"):
        make(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})


def test_minimind_names_for_yarn_and_experts() -> None:
    config = MiniMindConfig(inference_rope_scaling=True, n_routed_experts=8, aux_loss_alpha=0.1)
    assert config.rope_parameters == {**YARN, "rope_theta": 1e6}
    assert (config.num_experts, config.router_aux_loss_coef) == (8, 0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads": 3}, "divided among"),
        ({"num_attention_heads": 32, "num_key_value_heads": 32}, "head size is 1"),
        ({**MOE, "num_experts_per_tok": 5}, "5 of 4 experts"),
        ({"num_hidden_layers": 0}, "1 or more"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        MiniMindConfig(**{**SHAPE, **changes})


@pytest.mark.parametrize(
    ("layers", "moe", "count"), [(2, False, 8_915_456), (8, False, 25_829_888), (2, True, 26_221_056)]
)
def test_the_lessons_sizes(layers: int, moe: bool, count: int) -> None:
    """8.915 million is what the lesson prints; the second is the project's 26M."""
    with torch.device("meta"):
        model = MiniMindForCausalLM(MiniMindConfig(num_hidden_layers=layers, use_moe=moe))
    assert count_parameters(model) == count


@each_kind
def test_cache_changes_nothing(kind: str) -> None:
    model, ids = make(kind), some_ids(2, 12)
    whole = model(ids).logits
    cache, parts = None, []
    for a, b in ((0, 5), (5, 6), (6, 7), (7, 12)):
        out = model(ids[:, a:b], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "honed"])
def test_attention_implementations_agree(kind: str, implementation: str) -> None:
    model, ids = make(kind, dtype=torch.float32), some_ids(2, 9)
    expected = model(ids).logits
    attention.register()
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_generate_is_greedy_search_by_hand_also_with_left_padding(kind: str) -> None:
    model = make(kind)
    prompts = [some_ids(7).tolist(), some_ids(4).tolist()]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    ids = torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]])
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    found = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert found[:, 7:].tolist() == expected
    if kind == "dense":
        llama = as_llama(model).generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert torch.equal(llama, found)
    with Engine(model) as engine:  # honed's own, with both prompts in one batch
        answers = complete(engine, [Request(prompt_ids=prompt, max_new_tokens=6) for prompt in prompts])
    assert [list(one[0].ids) for one in answers] == expected


@pytest.mark.parametrize("kind", ["dense", "moe", "qk_norm"])
def test_saved_and_loaded_by_honed(kind: str, tmp_path: Path) -> None:
    model, ids = make(kind, dtype=torch.float32), some_ids(1, 9)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device=torch.device("cpu"))
    assert type(loaded) is MiniMindForCausalLM
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    half = load_model(str(tmp_path), device=torch.device("cpu"), dtype=torch.bfloat16)
    assert half.model.rope_frequencies == model.model.rope_frequencies


def test_auto_classes_know_it() -> None:
    register()
    register()
    config = AutoConfig.for_model("minimind", **SHAPE)
    assert type(AutoModelForCausalLM.from_config(config)) is MiniMindForCausalLM


def test_weights_are_drawn_as_asked_and_routers_too() -> None:
    model = MiniMindForCausalLM(MiniMindConfig(**{**SHAPE, **MOE, "hidden_size": 256, "initializer_range": 0.05}))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.05, rel=0.15), name


def test_hidden_states_and_attentions_on_request() -> None:
    model, ids = make("moe"), some_ids(1, 6)
    model.set_attn_implementation("eager")
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in out.hidden_states] == [(1, 6, 32)] * 3
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(1, 4, 6).double())
    assert len(out.router_logits) == 2


def test_ids_or_embeddings() -> None:
    model, ids = make(), some_ids(1, 6)
    embedded = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(ids).logits)
    with pytest.raises(ValueError, match="not both"):
        model(ids, inputs_embeds=embedded)
