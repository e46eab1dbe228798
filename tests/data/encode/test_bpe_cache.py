"""What is known of a tokenizer from before is what would be found anew."""

import copy
from pathlib import Path
from typing import Any

import pytest

from honed.cache import MANIFEST
from honed.data.encode import bpe, bpe_cache
from honed.data.encode.bpe_cache import KIND, cached_bpe, load, save
from honed.data.encode.encode import usual_encoder

TEXTS = ["What does that mean?", " two  spaces\n", "naïve 中文 😀", "<|end|> 12345", ""]


def again(tokenizer: Any, root: Path) -> list[list[int]]:
    fast = cached_bpe(tokenizer, usual_encoder(tokenizer), root=root)
    assert fast is not None
    return [ids.tolist() for ids in fast(TEXTS)]


def entries(root: Path) -> list[Path]:
    return sorted(path.parent for path in (root / KIND).glob(f"*/{MANIFEST}"))


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokenizers about which something was proven."""
    states: list[str] = []
    real = bpe.prove
    monkeypatch.setattr(bpe, "prove", lambda state, encode: states.append(state) or real(state, encode))
    return states


def test_it_is_proven_once(tiny_tokenizer: Any, tmp_path: Path, proofs: list[str]) -> None:
    expected = usual_encoder(tiny_tokenizer)(TEXTS)
    assert again(tiny_tokenizer, tmp_path) == again(tiny_tokenizer, tmp_path) == expected
    assert len(proofs) == 1


def test_what_is_read_is_what_was_written(tiny_tokenizer: Any, tmp_path: Path) -> None:
    proven = bpe.prove(tiny_tokenizer.backend_tokenizer.to_str(), usual_encoder(tiny_tokenizer))
    assert proven is not None
    save(proven, tmp_path / "entry")
    assert load(tmp_path / "entry") == proven


def test_another_tokenizer_is_proven_for_itself(
    tiny_tokenizer: Any, tmp_path: Path, proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    again(tiny_tokenizer, tmp_path)
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["mean"])
    assert again(other, tmp_path) == usual_encoder(other)(TEXTS)
    monkeypatch.setattr(bpe_cache, "version", lambda name: "another version")
    again(other, tmp_path)
    assert len(proofs) == 3 == len(entries(tmp_path))


def test_a_broken_entry_is_made_again(tiny_tokenizer: Any, tmp_path: Path, proofs: list[str]) -> None:
    again(tiny_tokenizer, tmp_path)
    [entry] = entries(tmp_path)
    (entry / "ids.npy").write_bytes((entry / "ids.npy").read_bytes()[:-8])
    for _ in range(2):
        assert again(tiny_tokenizer, tmp_path) == usual_encoder(tiny_tokenizer)(TEXTS)
    assert len(proofs) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tiny_tokenizer: Any, tmp_path: Path, proofs: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert again(tiny_tokenizer, tmp_path / "file") == usual_encoder(tiny_tokenizer)(TEXTS)
    assert len(proofs) == 2


def test_what_is_not_proven_is_not_kept(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_alike", lambda fast, encode: False)
    assert cached_bpe(tiny_tokenizer, usual_encoder(tiny_tokenizer), root=tmp_path) is None
    assert not entries(tmp_path)
