"""benchmarks/papers.py: documents by place, measuring through the runtime, sizes by arithmetic."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "train"))
sys.path.insert(0, str(Path(__file__).parent / "examples" / "train"))

import papers_documents
from megabyte import MegaByte
from megabyte_sizes import Sizes as MegaByteSizes
from megabyte_sizes import Stage
from papers_anllm import prompts
from papers_bundles import Bundles, bundles
from papers_bytes import flops_per_byte, megabyte_words
from papers_documents import Asked, Material, Story, stories
from papers_measure import Options, Part, measured
from papers_mixcon import (
    ONE_BLOCK,
    Sizes,
    active_parameters,
    computed_caches,
    equal_attention,
    mixcon,
    throughput,
)
from papers_recall import answered, passkeys, recall
from published import write
from small import small, write_text
from start import new_model
from systems import SYSTEMS
from train_megabyte import SIZES

import longspan
from longspan.engines import Device

TINY = MegaByteSizes(
    patch_bytes=4,
    context_bytes=1024,
    over_patches=Stage(width=32, layers=1, heads=4),
    in_patch=Stage(width=16, layers=1, heads=2),
)


@pytest.fixture(scope="module")
def builtin() -> Iterator[tuple[longspan.Runtime, Material]]:
    """The built-in model, and novel text that it was not trained on."""
    with longspan.load(longspan.builtin_bundle(), device="cpu", budget="1GiB") as runtime:
        said = "And the rain went on, as it had for days.\n" * 60
        ids = runtime.tokenizer.encode(said, continues=True)
        yield runtime, Material(tokenizer=runtime.tokenizer, ids=ids)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A tokenizer that knows the tasks' words, and a short text."""
    folder = tmp_path_factory.mktemp("words")
    write_text(folder, "words")
    return Material.of(folder, "words")


@pytest.mark.parametrize("task", ["passkey", "needles", "mary"])
def test_a_document_says_its_facts_in_order(words: Material, task: papers_documents.Task) -> None:
    (story,) = stories(task, rows=1, facts=4, seed=3)
    tokens = words.document(story, 400, np.linspace(0, 1, len(story.facts)).tolist())
    text = words.tokenizer.decode(tokens.tolist())
    places = [text.index(fact) for fact in story.facts]
    assert places == sorted(places)
    assert text.startswith(story.facts[0])
    assert text.endswith(story.facts[-1]) or len(story.facts) == 1
    longest = max(len(words.encode(each.question)) for each in story.asked)
    assert 380 < len(tokens) + longest + papers_documents.ANSWER_TOKENS <= 400


def test_every_needle_is_asked_for_with_its_own_number() -> None:
    for story in stories("needles", rows=20, facts=8, seed=0):
        assert len(story.asked) == 8
        for fact, asked in zip(story.facts, story.asked, strict=True):
            thing = asked.question.split("What is the ")[1].split(" number")[0]
            assert fact == f"\nThe {thing} number is {asked.answer}.\n"
    assert stories("needles", rows=2, facts=8, seed=0) != stories(
        "needles", rows=2, facts=8, seed=1
    )


def test_a_document_without_room_says_so(words: Material) -> None:
    (story,) = stories("needles", rows=1, facts=8, seed=0)
    with pytest.raises(ValueError, match=r"^a document of 40 tokens has no room for filler: facts"):
        words.document(story, 40, [0.5] * 8)


def test_keys_are_recalled_at_every_depth_of_a_shared_text(
    builtin: tuple[longspan.Runtime, Material],
) -> None:
    row = passkeys(*builtin, length=700, depths=3, keys=2, seed=0)
    assert row["trials"] == 6
    assert row["exact"] >= 5
    assert [place for place, _, _ in row["by_depth"]] == [0.0, 0.5, 1.0]
    assert sum(exact for _, exact, _ in row["by_depth"]) == row["exact"]
    # What stands before a key is read once: half of the text twice, and its ends.
    assert 2.5 * 2 * 600 < row["read_tokens"] < 2.6 * 2 * 700
    assert row["peak_bytes"] <= row["budget_bytes"] == 2**30


@pytest.mark.gpu
def test_keys_are_recalled_on_the_gpu() -> None:
    with longspan.load(longspan.builtin_bundle(), device="cuda", budget="3GiB") as runtime:
        said = "And the rain went on, as it had for days.\n" * 60
        ids = runtime.tokenizer.encode(said, continues=True)
        material = Material(tokenizer=runtime.tokenizer, ids=ids)
        row = passkeys(runtime, material, length=4096, depths=3, keys=2, seed=0)
    assert row["exact"] >= 5


def test_a_wrong_answer_is_wrong(builtin: tuple[longspan.Runtime, Material]) -> None:
    runtime, material = builtin
    (story,) = stories("passkey", rows=1, facts=1, seed=1)
    memory = runtime.read_tokens([material.document(story, 300, [0.5])])
    assert answered(runtime, material, memory, story.asked[0])
    other = Asked(question=story.asked[0].question, answer="00000")
    assert not answered(runtime, material, memory, other)


def test_a_question_of_other_tokens_is_read_as_tokens(
    builtin: tuple[longspan.Runtime, Material],
) -> None:
    """As an AnLLM's is that is read without its anchors: here a token more after its line."""
    runtime, material = builtin

    class Marked:
        cut_marks = ""
        vocab_size = runtime.tokenizer.vocab_size
        decode, stream = runtime.tokenizer.decode, runtime.tokenizer.stream

        def encode(self, text: str, *, continues: bool = False) -> papers_documents.Tokens:
            marked = text.replace("key?", "key??")
            return runtime.tokenizer.encode(marked, continues=continues)

    (story,) = stories("passkey", rows=1, facts=1, seed=1)
    memory = runtime.read_tokens([material.document(story, 300, [0.5])])
    before = memory.tokens
    assert answered(runtime, replace(material, tokenizer=Marked()), memory, story.asked[0])
    assert memory.tokens == before


def test_needles_take_half_of_a_document_at_most(
    builtin: tuple[longspan.Runtime, Material],
) -> None:
    row = recall(*builtin, "needles", length=128, documents=2, facts=8, seed=0)
    assert 1 < row["facts"] < 8
    assert row["trials"] == 2 * row["facts"]
    assert 0 <= row["exact"] <= row["trials"]


def test_megabyte_is_scored_on_all_bytes_but_the_first(words: Material) -> None:
    model, ids = MegaByte(TINY).eval(), np.random.default_rng(0).integers(256, size=130)
    material = replace(words, ids=ids)
    row = megabyte_words(model, material, length=64, texts=2, device="cpu")
    text = torch.from_numpy(ids[:128]).view(2, 64)
    with torch.inference_mode():
        logits = model(text)[:, 1:]
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    assert row["nats_a_token"] == pytest.approx(float(want), rel=1e-5)
    assert row["text_tokens"] == 126


def test_mambabyte_and_megabyte_cost_as_much_a_byte() -> None:
    mamba = flops_per_byte(SYSTEMS["mambabyte"].model)
    assert mamba == pytest.approx(7.1e6 + 0.5e6, rel=0.05)
    assert SIZES.flops_per_byte() / mamba == pytest.approx(1.0, abs=0.1)


def test_mixcon_has_the_papers_bytes_with_two_heads_of_keys() -> None:
    found = [row["cached_bytes"] / 2**30 for row in computed_caches(262_144)]
    assert found == [32.0, 8.0, 2.0]


def test_attention_alone_has_as_many_active_parameters() -> None:
    mixed, alone = mixcon(ONE_BLOCK), equal_attention(ONE_BLOCK)
    assert active_parameters(alone) == pytest.approx(active_parameters(mixed), rel=0.01)
    assert alone.layers_by_kind()["full_attention"] == 8
    assert mixed.layers_by_kind() == {"conba": 6, "mlp": 4, "moe": 4, "full_attention": 2}


def test_a_system_is_asked_what_it_was_trained_on(there: Bundles, checkpoints: Path) -> None:
    part = Part(there, options_for(checkpoints / "data"))
    assert part.taught("mambabyte", ("needles", "mary")) == ["needles", "mary"], "it does not say"
    notes = {"tasks": ["passkey", "mary", "lm"]}
    known = replace(there["mambabyte"], training=notes)
    part = Part(replace(there, found={"mambabyte": known}), part.options)
    assert part.taught("mambabyte", ("needles", "mary")) == ["mary"]
    assert list(part.tasks("mambabyte", ("needles",), (256,))) == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_throughput_of_both_is_measured(device: Device) -> None:
    sizes = Sizes(
        width=128, blocks=1, heads=2, kv_heads=1, d_ff=256, experts=2, top_k=1, expert_d_ff=64,
        vocab=64,
    )  # fmt: skip
    rows = list(throughput(device, prompt=64, answer=6, budget="4GiB", sizes=sizes))
    assert [row["system"] for row in rows] == ["mixcon", "attention"]
    assert rows[1]["cached_bytes"] == 4 * rows[0]["cached_bytes"] == 8 * 64 * 2 * 128 * 2
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_a_prompt_has_its_anchors(tmp_path: Path) -> None:
    write_text(tmp_path, "sentences")
    material, anchor = Material.of(tmp_path, "sentences"), SYSTEMS["anllm"].anchor
    assert anchor is not None
    found = prompts(material, anchor, shots=5, length=128, number=0, seed=0, task="needles")
    count = {kind: int((tokens == anchor).sum()) for kind, (tokens, _) in found.items()}
    assert count["an anchor a demonstration"] == count["the demonstrations alone"] == 5
    assert count["an anchor a sentence"] > 25
    tokens, asked = found["an anchor a sentence"]
    assert asked is not None
    assert asked.answer in material.tokenizer.decode(tokens.tolist())


def options_for(folder: Path) -> Options:
    return Options(
        data=folder, device="cpu", budget="2GiB", random_budget="2GiB",
        systems=("mambabyte", "megabyte"), tokens=(256,), depths=2, keys=1, documents=1,
        text_tokens=512, byte_texts=2, generated=8, shapes=False, seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MambaByte that was never trained, and the text that it would have read."""
    folder = tmp_path_factory.mktemp("papers")
    torch.manual_seed(0)
    write_text(folder / "data", "bytes")
    system = small("mambabyte")
    model = new_model(system.model, compute=torch.float32, device="cpu")
    write(system, model, folder / "mambabyte")
    cost = {"gpu_minutes": 2.5, "tokens": 100, "log": [1]}
    (folder / "mambabyte" / "training.json").write_text(json.dumps(cost))
    return folder


@pytest.fixture(scope="module")
def there(checkpoints: Path) -> Iterator[Bundles]:
    """Its bundle; MegaByte's checkpoint is missing."""
    with bundles(checkpoints, ["mambabyte", "megabyte"], workers=1) as found:
        kept = found["mambabyte"].path
        yield found
    assert not kept.exists()


def test_a_checkpoint_is_exported_and_its_bytes_are_counted(
    there: Bundles, checkpoints: Path
) -> None:
    assert there["mambabyte"].training == {"gpu_minutes": 2.5, "tokens": 100}
    assert dict(there.missing) == {"megabyte": "no checkpoint at megabyte/"}
    missing, words, speed = measured("mambabyte", there, options_for(checkpoints / "data"))
    assert missing == {
        "what": "not measured", "system": "megabyte", "why": "no checkpoint at megabyte/",
    }  # fmt: skip
    # The model knows nothing: log2(256) is 8.
    assert 8 < words["bits_a_byte"] < 10
    assert words["text_tokens"] == words["text_bytes"] == 2 * 255
    # A difference of two short times: on a busy machine it may be anything.
    assert np.isfinite(speed["ms_a_byte"])


def test_what_does_not_fit_is_a_row_that_says_why(there: Bundles, checkpoints: Path) -> None:
    asked = replace(options_for(checkpoints / "data"), budget="8MiB")
    rows = list(measured("mambabyte", there, asked))
    said = [row["why"] for row in rows if row["system"] == "mambabyte"]
    assert len(said) == 1
    assert "8.0 MiB" in said[0]


def test_a_broken_checkpoint_is_missing_with_the_reason(tmp_path: Path, checkpoints: Path) -> None:
    shutil.copytree(checkpoints / "mambabyte", tmp_path / "mambabyte")
    (tmp_path / "mambabyte" / "config.json").write_text("{}")
    with bundles(tmp_path, ["mambabyte"], workers=1) as found:
        assert "mambabyte" not in found
        assert "was asked for as a checkpoint and its config" in found.missing["mambabyte"]


def test_a_story_is_its_facts_and_questions() -> None:
    (story,) = stories("mary", rows=1, facts=1, seed=0)
    assert isinstance(story, Story)
    assert story.asked[0].question.startswith("\nQuestion: Where is ")
    assert story.asked[0].answer in story.facts[0]
