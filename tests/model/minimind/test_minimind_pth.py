"""Weight files in MiniMind's own naming, made here as the project makes them, and read by honed; and the way back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from honed.errors import ModelError
from honed.model.minimind.config import MiniMindConfig
from honed.model.minimind.minimind import MiniMindForCausalLM
from honed.model.minimind.pth import halves_first, load_pth, neighbours_first, save_pth

HEADS, KV_HEADS, SIZE, D, VOCAB = 8, 2, 4, 32, 50
State = dict[str, torch.Tensor]


def lesson_state(*, moe: bool = False, layers: int = 2) -> State:
    """What `minimind_sft_512.pth` holds, but for its sizes: float16, the tied embedding under both names."""
    torch.manual_seed(3)
    state = {"tok_embeddings.weight": torch.randn(VOCAB, D) * 0.3, "norm.weight": torch.rand(D) + 0.5}
    shapes = {"attention.wq": (D, D), "attention.wk": (KV_HEADS * SIZE, D), "attention.wv": (KV_HEADS * SIZE, D),
              "attention.wo": (D, D)}  # fmt: skip
    feeds = ["feed_forward"] if not moe else ["feed_forward.shared_experts"]
    feeds += [f"feed_forward.experts.{e}" for e in range(4)] if moe else []
    for feed in feeds:
        shapes |= {f"{feed}.w1": (48, D), f"{feed}.w2": (D, 48), f"{feed}.w3": (48, D)}
    if moe:
        shapes["feed_forward.gate"] = (4, D)
    for layer in range(layers):
        state |= {f"layers.{layer}.{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
        for norm in ("attention_norm", "ffn_norm"):
            state[f"layers.{layer}.{norm}.weight"] = torch.rand(D) + 0.5
    state["output.weight"] = state["tok_embeddings.weight"]
    return {name: tensor.half() for name, tensor in state.items()}


def lesson_logits(state: State, ids: torch.Tensor) -> torch.Tensor:
    """MiniMind 2 in float64: neighbouring dimensions of a head are one complex number, turned by its position."""
    w = {name: tensor.double() for name, tensor in state.items()}
    length = len(ids)
    frequencies = 1e6 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    turns = torch.polar(torch.ones(length, SIZE // 2).double(), torch.outer(torch.arange(length).double(), frequencies))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    def turned(x: torch.Tensor) -> torch.Tensor:  # (heads, T, E)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turns).flatten(2)

    def swiglu(x: torch.Tensor, at: str) -> torch.Tensor:
        return (F.silu(x @ w[f"{at}.w1.weight"].T) * (x @ w[f"{at}.w3.weight"].T)) @ w[f"{at}.w2.weight"].T

    def feed(x: torch.Tensor, at: str) -> torch.Tensor:
        if f"{at}.gate.weight" not in w:
            return swiglu(x, at)
        share, chosen = (x @ w[f"{at}.gate.weight"].T).softmax(-1).topk(2, dim=-1)
        share = share / share.sum(-1, keepdim=True)
        all_experts = torch.stack([swiglu(x, f"{at}.experts.{e}") for e in range(4)], dim=1)
        picked = all_experts.gather(1, chosen[..., None].expand(-1, -1, D))
        return (picked * share[..., None]).sum(1) + swiglu(x, f"{at}.shared_experts")

    h = w["tok_embeddings.weight"][ids]
    for layer in range(2):
        x = norm(h, f"layers.{layer}.attention_norm.weight")
        q, k, v = (
            (x @ w[f"layers.{layer}.attention.w{part}.weight"].T).view(length, -1, SIZE).transpose(0, 1)
            for part in "qkv"
        )
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=0) for part in (turned(k), v))
        scores = turned(q) @ k.transpose(1, 2) / math.sqrt(SIZE)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)
        h = h + attended @ w[f"layers.{layer}.attention.wo.weight"].T
        h = h + feed(norm(h, f"layers.{layer}.ffn_norm.weight"), f"layers.{layer}.feed_forward")
    return norm(h, "norm.weight") @ w["output.weight"].T


@pytest.mark.parametrize("moe", [False, True])
def test_the_lessons_file_gives_the_lessons_logits(moe: bool, tmp_path: Path) -> None:
    file, state, ids = tmp_path / f"minimind_sft_32{'_moe' * moe}.pth", lesson_state(moe=moe), torch.arange(3, 20)
    torch.save(state, file)
    model = load_pth(file, dtype=torch.float64).eval()
    torch.testing.assert_close(model(ids[None]).logits[0], lesson_logits(state, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("moe", [False, True])
def test_round_trip_gives_the_same_file(moe: bool, tmp_path: Path) -> None:
    state = lesson_state(moe=moe)
    torch.save(state, tmp_path / "a.pth")
    save_pth(load_pth(tmp_path / "a.pth", dtype=torch.float16), tmp_path / "b.pth")
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "rms_norm_eps": 1e-6}, {"use_moe": True, "n_shared_experts": 2}]
)
def test_the_newer_naming_is_honeds_own(changes: dict[str, Any], tmp_path: Path) -> None:
    model = made(**changes)
    save_pth(model, tmp_path / "a.pth", names="transformers")
    again, ids = load_pth(tmp_path / "a.pth").eval(), torch.arange(3, 20)[None]
    assert "model.layers.0.self_attn.q_proj.weight" in torch.load(tmp_path / "a.pth", weights_only=True)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def made(**changes: Any) -> MiniMindForCausalLM:
    shape = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": 2, "intermediate_size": 48}
    return MiniMindForCausalLM(MiniMindConfig(**shape, **changes)).eval()


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"use_moe": True, "n_shared_experts": 2}])
def test_what_minimind_2_had_not_cannot_be_named(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no names for model\.layers\.0\."):
        save_pth(made(**changes), tmp_path / "a.pth")
    with pytest.raises(ModelError, match="Unknown naming 'v1'"):
        save_pth(made(), tmp_path / "a.pth", names="v1")
    with pytest.raises(ModelError, match="cannot be written"):
        save_pth(made(), tmp_path / "absent" / "a.pth")


def test_derived_tables_and_a_head_that_is_left_out_do_no_harm(tmp_path: Path) -> None:
    state = lesson_state()
    torch.save(state, tmp_path / "a.pth")
    del state["output.weight"]
    state |= {"pos_cis": torch.ones(3, 2), "layers.1.attention.mask": torch.ones(1, 1, 4, 4)}
    torch.save(state, tmp_path / "b.pth")
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(load_pth(tmp_path / "a.pth")(ids).logits, load_pth(tmp_path / "b.pth")(ids).logits)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("layers.1.ffn_norm.weight"), "lacks model.layers.1.post_attention_layernorm.weight"),
        (lambda s: s.update({"layers.0.attention.wz.weight": torch.ones(2)}), "not have: layers.0.attention.wz.weight"),
        (lambda s: s.update({"norm.weight": torch.ones(7)}), "model.norm.weight (7,) instead of (32,)"),
        (lambda s: s.update({"output.weight": torch.ones(VOCAB, D)}), "the head is not the embedding"),
        (lambda s: s.update({"layers.9.ffn_norm.weight": torch.ones(D)}), "layers.9.ffn_norm.weight"),
        (lambda s: s.clear(), "holds no state dict"),
        (lambda s: s.update({"step": 3}), "holds no state dict"),
        (lambda s: [s.pop(n) for n in list(s) if "embed" in n], "No embedding among"),
    ],
)
def test_files_that_are_not_the_models_are_refused_by_name(change: Any, says: str, tmp_path: Path) -> None:
    state = lesson_state()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=re.escape(says)):
        load_pth(tmp_path / "a.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"tok_embeddings.weight": Hostile()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("not a weight file")
    for name, says in (("a.pth", "plain tensors"), ("b.pth", "plain tensors"), ("c.pth", "No such file")):
        with pytest.raises(ModelError, match=says):
            load_pth(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_another_number_of_heads_is_told_by_keyword(tmp_path: Path) -> None:
    model = made(
        num_attention_heads=4, num_key_value_heads=1, rope_parameters={"rope_theta": 1e4, "rope_type": "default"}
    )
    save_pth(model, tmp_path / "a.pth")
    again, ids = load_pth(tmp_path / "a.pth", num_attention_heads=4, rope_theta=1e4), torch.arange(3, 20)[None]
    torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits)


def test_reordering_is_undone() -> None:
    weight = torch.randn(24, 5)
    assert torch.equal(neighbours_first(halves_first(weight, 6), 6), weight)
    assert torch.equal(halves_first(weight, 6)[:6], weight[[0, 2, 4, 1, 3, 5]])
