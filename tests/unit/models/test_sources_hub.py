"""A teacher from a hub that is a folder here."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from pipeline.models import sources
from tests import tiny
from tests.unit.models.test_sources import assert_is_the_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of owner/model's files in the hub's local cache; whatever is not in it is out of reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def test_a_model_of_the_hub_is_taken_with_the_commit_it_resolved_to(hub: Path, tmp_path: Path):
    tiny.save(hub)
    facts = sources.from_hub("owner/model", "main", tmp_path / "out")
    assert facts == {"repo": "owner/model", "revision": "main", "commit": COMMIT, "stored": "float32"}
    assert_is_the_tiny_model(tmp_path / "out")


OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("when", ["hf_hub_download", "snapshot_download"])
def test_a_branch_that_moves_meanwhile_does_not_mix_two_commits(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """Weights, tokenizer and generation config are all of the commit that the branch was at first."""
    tiny.save(hub)
    tiny.llama(seed=1).save_pretrained(hub.parent / OTHER)
    extended = tiny.tokenizer()
    extended.model_max_length = 77
    extended.save_pretrained(hub.parent / OTHER)
    GenerationConfig(bos_token_id=1, eos_token_id=9).save_pretrained(hub.parent / OTHER)
    GenerationConfig(bos_token_id=1, eos_token_id=8).save_pretrained(hub)

    def then_moves(sound: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            result = sound(*args, **kwargs)
            (hub.parents[1] / "refs" / "main").write_text(OTHER)
            return result

        return call

    monkeypatch.setattr(sources, when, then_moves(getattr(sources, when)))
    facts = sources.from_hub("owner/model", "main", tmp_path / "out")
    assert facts["commit"] == COMMIT
    assert_is_the_tiny_model(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length != 77
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 8


def test_a_hub_out_of_reach_is_answered_with_repository_revision_and_the_way_out(hub: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"cannot give 'owner/model' at revision 'main' \(HF_HUB_OFFLINE is set\)"
    ) as caught:
        sources.from_hub("owner/model", "main", tmp_path / "out")
    assert "teacher.source to pypi or path" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_pickled_weights_of_the_hub_are_not_loaded(hub: Path, tmp_path: Path):
    """The design page: no pickle."""
    tiny.save(hub)
    (hub / "model.safetensors").unlink()
    torch.save(tiny.llama().state_dict(), hub / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot give 'owner/model'"):
        sources.from_hub("owner/model", "main", tmp_path / "out")


def test_parts_of_the_hub_are_all_taken(hub: Path, tmp_path: Path):
    tiny.llama().save_pretrained(hub, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(hub)
    assert len([*hub.glob("*.safetensors")]) > 1
    sources.from_hub("owner/model", "main", tmp_path / "out")
    assert_is_the_tiny_model(tmp_path / "out")


def test_a_teacher_of_the_hub_that_is_not_sound_is_refused_by_its_name(hub: Path, tmp_path: Path):
    tiny.save(hub)
    (hub / "config.json").write_text('{"model_type": "mynewlm", "auto_map": {"AutoConfig": "code.Config"}}')
    with pytest.raises(
        ValueError, match=r"teacher\.repo 'owner/model' cannot be the teacher: its type 'mynewlm' needs code"
    ):
        sources.from_hub("owner/model", "main", tmp_path / "out")
