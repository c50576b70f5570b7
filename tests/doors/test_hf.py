"""The door to transformers on real models: right, whatever the batch, in a process that leaks nothing and may die."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instar import receipt
from instar.data import pretrained
from instar.data.intents import clinc150_cases
from instar.doors import hf, hf_encoder, process, speaking
from instar.doors.hf import Live, TransformersModel
from instar.doors.local import Settings
from instar.errors import DataError, MissingExtraError, ModelError, ShapeError, UnknownNameError
from instar.gate.predictions import Cases
from instar.receipt import updating

SMOL, MINI = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"
EXAMPLES = [
    ("please wake me at seven", "alarm"),
    ("set an alarm for noon", "alarm"),
    ("will it rain tomorrow", "weather"),
    ("how hot is it outside", "weather"),
    ("send money to my landlord", "bank"),
    ("what is my account balance", "bank"),
]
TEXTS = ["alarm at six in the morning please, and another one an hour later", "is it snowing", "transfer fifty dollars", "rain?"]
SENTENCES = Cases("sentences", ["a", "b", "c", "d"], TEXTS, ["alarm", "weather", "bank", "weather"], examples=EXAMPLES)
CHOICES = Cases(
    "choices",
    [str(i) for i in range(5)],
    [
        "The capital of France is",
        "The capital of Japan is",
        "In winter it is often",
        "Two plus two is",
        "The opposite of hot is ",
    ],
    ["Paris", "Tokyo", "cold", "four", "cold"],
    [
        ["London", "Paris"],
        ["Seoul", "Tokyo", "a city far away"],
        ["hot and dry", "cold"],
        ["four", "nine", "a"],
        ["cold", "tall"],
    ],
)


@pytest.fixture(scope="module")
def smol() -> tuple[Any, Any]:
    return pretrained.load(SMOL)


@pytest.fixture(scope="module")
def short() -> tuple[Any, Any]:
    """Four of thirty layers: real weights, where what is said does not matter."""
    return pretrained.load(SMOL, layers=4)


@pytest.fixture(scope="module")
def mini() -> tuple[Any, Any]:
    return pretrained.load(MINI)


def test_an_encoder_classifies_in_a_process_of_its_own(mini: tuple[Any, Any]) -> None:
    threads, steps = torch.get_num_threads(), []
    version = TransformersModel(MINI, {"threads": "2", "batch": 3, "seed": 1})
    found = version.run(SENTENCES, "classification", lambda done, total: steps.append((done, total)))
    assert found.outputs == found.labels == SENTENCES.labels
    assert (found.ids, found.inputs) == (SENTENCES.ids, TEXTS)
    assert torch.get_num_threads() == threads
    assert steps[-1] == (4, 4)
    assert found.facts["threads"] == 2
    assert found.facts["weights_sha256"] == pretrained._table()[MINI]["sha256"]
    assert found.facts["settings"]["batch"] == 3
    assert found.costs["size_bytes"] == process.size(mini[0]) > 4 * pretrained._table()[MINI]["parameters"]
    assert 0.5 < found.costs["peak_bytes"] / found.costs["size_bytes"] < 4
    assert found.seconds is not None
    assert (found.seconds > 0).all()
    assert found.seconds.max() <= found.costs["wall_seconds"]
    # The same by hand, one sentence at a time: mean over tokens, length 1.
    model, tokenizer = mini
    assert found.embeddings is not None
    for text, vector in zip(TEXTS, found.embeddings, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_the_batch_changes_no_class(mini: tuple[Any, Any]) -> None:
    one, three, all_ = (Live(*mini, settings={"batch": n}).run(SENTENCES, "classification") for n in (1, 3, 16))
    assert one.outputs == three.outputs == all_.outputs
    assert one.embeddings is not None
    assert three.embeddings is not None
    np.testing.assert_allclose(one.embeddings, three.embeddings, atol=1e-5)


@pytest.mark.skipif("INSTAR_DATA" not in os.environ, reason="INSTAR_DATA names no folder of data sets")
def test_real_intents(mini: tuple[Any, Any]) -> None:
    """0.91 with 20 examples an intent; here 3, to be quick."""
    cases = clinc150_cases(per_class=1, examples_per_class=3)
    found = Live(*mini, settings={"batch": 32}).run(cases, "classification")
    assert np.mean([a == b for a, b in zip(found.outputs, cases.labels or [], strict=True)]) > 0.75


def test_retrieval_is_cosine_order(mini: tuple[Any, Any]) -> None:
    documents = [(f"d{i}", text) for i, (text, _) in enumerate(EXAMPLES)]
    cases = Cases("search", ["q1", "q2"], ["weather forecast", "payments"], documents=documents)
    found = Live(*mini, settings={"k": 4}).run(cases, "retrieval")
    encoder = hf_encoder.Encoder(*mini)
    vectors, _ = encoder.embed([text for _, text in documents], "{input}", Settings())
    assert found.embeddings is not None
    for output, query in zip(found.outputs, found.embeddings, strict=True):
        order = sorted(range(6), key=lambda i: -float(vectors[i] @ query))
        assert output == [f"d{i}" for i in order[:4]]
    assert set(found.outputs[0][:2]) == {"d2", "d3"}
    with pytest.raises(DataError, match="documents"):
        Live(*mini).run(SENTENCES, "retrieval")


def test_vectors_that_are_not_numbers_are_no_answers(mini: tuple[Any, Any]) -> None:
    class Broken(hf_encoder.Encoder):
        def embed(self, texts: Any, *rest: Any) -> Any:
            vectors, seconds = super().embed(texts, *rest)
            vectors[[text == "is it snowing" for text in texts]] = np.nan
            return vectors, seconds

    cases = Cases("search", SENTENCES.ids, TEXTS, examples=EXAMPLES, documents=[("d", "weather"), ("e", "money")])
    for task in ("classification", "retrieval"):
        answers = Broken(*mini).answer(cases, task, Settings(), lambda done: None)
        assert [output is None for output in answers.outputs] == [False, True, False, False]
        assert answers.errors == {1: "the model answered NaN or infinity"}
        assert answers.embeddings is None
    bad = Cases("search", ["a"], ["rain"], documents=[("d", "is it snowing")])
    with pytest.raises(ModelError, match="documents"):
        Broken(*mini).answer(bad, "retrieval", Settings(), lambda done: None)


@pytest.mark.parametrize("labels", [1, 3])
def test_heads(labels: int, mini: tuple[Any, Any], tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=labels)
    model = BertForSequenceClassification(config).eval()
    model.classifier.weight.data *= 50
    task = "regression" if labels == 1 else "classification"
    model.save_pretrained(tmp_path)
    mini[1].save_pretrained(tmp_path)
    with torch.no_grad():
        logits = [model(**mini[1](text, return_tensors="pt")).logits[0] for text in TEXTS]
    loaded = pretrained.load(tmp_path)
    assert type(loaded[0]).__name__ == "BertForSequenceClassification"
    found = Live(*loaded, settings={"batch": 2}).run(SENTENCES, task)
    if labels == 1:
        np.testing.assert_allclose(found.outputs, [float(row[0]) for row in logits], rtol=1e-4, atol=1e-5)
    else:
        assert found.outputs == [f"LABEL_{int(row.argmax())}" for row in logits]
        numbered = Cases("numbered", SENTENCES.ids, TEXTS, [0, 1, 2, 1])
        assert Live(*loaded).run(numbered, task).outputs == [int(row.argmax()) for row in logits]
    assert found.embeddings is not None
    assert found.embeddings.shape == (4, 32)


@torch.no_grad()
def naive(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """One answer alone: the whole text's tokens, those beyond the prompt's summed."""
    before, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (prompt, f"{prompt} {choice}"))
    rows = model(whole).logits[0].log_softmax(-1)
    return sum(float(rows[i - 1, whole[0, i]]) for i in range(before.shape[1], whole.shape[1]))


def test_multiple_choice_is_the_naive_loop_at_any_batch(smol: tuple[Any, Any], short: tuple[Any, Any]) -> None:
    causal = hf.subject(*short)
    assert isinstance(causal, speaking.Speaker)
    pairs = [(text.rstrip(), c) for text, choices in zip(CHOICES.inputs, CHOICES.choices or [], strict=True) for c in choices]
    expected = [naive(*short, text, choice) for text, choice in pairs]
    rows = [speaking.split(causal, text, f" {choice}") for text, choice in pairs]
    np.testing.assert_allclose(speaking.likelihoods(causal, rows, 16), expected, rtol=1e-4)
    for normalize in ("none", "characters"):
        values = iter(expected)
        best = []
        for choices in CHOICES.choices or []:
            of = [next(values) / (len(c) if normalize == "characters" else 1) for c in choices]
            best.append(choices[of.index(max(of))])
        for batch in (1, 4, 100):
            found = Live(*short, settings={"batch": batch, "normalize": normalize}).run(CHOICES, "multiple_choice")
            assert found.outputs == best
    assert Live(*smol).run(CHOICES, "multiple_choice").outputs[:2] == ["Paris", "Tokyo"]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_beginning_that_answers_share_is_read_once(batch: int, short: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    causal = hf.subject(*short)
    assert isinstance(causal, speaking.Speaker)
    texts = ["A long story. " * 20 + "Its end is", "Another one, which is not as long. " * 9 + "It says"]
    answers = ["good", "bad and sad", "good in the end", "unknown"]
    read, logits = [], causal.logits

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(tokens.numel())
        return logits(tokens, *rest)

    monkeypatch.setattr(causal, "logits", counted)
    for text in texts:
        rows = [speaking.split(causal, text, f" {answer}") for answer in answers]
        read.clear()
        shared = speaking.likelihoods(causal, rows, batch)
        assert sum(read) < len(rows[0][0]), "no answer reads the whole story"
        np.testing.assert_allclose(shared, [naive(*short, text, answer) for answer in answers], rtol=1e-4)
    cases = Cases("long", ["a", "b"], texts, choices=[answers, answers[::-1]])
    found = causal.answer(cases, "multiple_choice", Settings(batch=batch), lambda done: None)
    monkeypatch.setattr(causal, "remember", lambda tokens: None)
    assert found.outputs == causal.answer(cases, "multiple_choice", Settings(batch=batch), lambda done: None).outputs


@pytest.mark.parametrize("kind", ["Mamba", "Mistral", "GPT2"])
def test_only_plain_keys_and_values_are_shared(kind: str, mini: tuple[Any, Any]) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 31000}
    more = {"Mistral": {"sliding_window": 4, "intermediate_size": 16, "num_key_value_heads": 2}, "GPT2": {"bos_token_id": 0}}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more.get(kind, {}), eos_token_id=0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    causal = hf.subject(model, mini[1])
    assert isinstance(causal, speaking.Speaker)
    assert (causal.remember(torch.tensor([[1, 2, 3]])) is not None) == (kind == "GPT2")
    rows = [([5, *range(7, 90), *answer], len(answer)) for answer in ([1, 2], [3], [4, 5, 6])]
    with torch.no_grad():
        expected = [
            float(sum(model(torch.tensor([ids])).logits[0].log_softmax(-1)[i - 1, ids[i]] for i in range(len(ids) - n, len(ids))))
            for ids, n in rows
        ]
    np.testing.assert_allclose(speaking.likelihoods(causal, rows, 16), expected, rtol=1e-4)


def test_the_boundary_between_prompt_and_answer(short: tuple[Any, Any]) -> None:
    causal = hf.subject(*short)
    assert isinstance(causal, speaking.Speaker)
    spaced, bare = speaking.split(causal, "The sky is ", "blue"), speaking.split(causal, "The sky is", " blue")
    assert spaced == bare, "a space at the end of the prompt belongs to the answer"
    ids, n = bare
    assert causal.decode(ids[-n:]) == " blue"
    assert speaking.split(causal, "", "blue")[0][0] == 0, "an empty prompt still has something before the first token"


def test_ties_empty_choices_and_too_long_items(short: tuple[Any, Any]) -> None:
    cases = Cases(
        "odd", ["tie", "none", "empty", "long"], ["Say", "Say", "Say", "word " * 30], choices=[["x", "x"], [], [""], ["x"]]
    )
    found = Live(*short, settings={"max_length": 20}).run(cases, "multiple_choice")
    assert found.outputs == ["x", None, None, None]
    assert set(found.errors) == {"none", "empty", "long"}
    assert "more than the 20" in found.errors["long"]
    with pytest.raises(DataError, match="no choices"):
        Live(*short).run(SENTENCES, "multiple_choice")
    with pytest.raises(ModelError, match="labels to choose from"):
        Live(*short).run(SENTENCES, "classification")


def test_generation_is_that_of_transformers_one_by_one(short: tuple[Any, Any]) -> None:
    model, tokenizer = short
    texts = ["The capital of France is", "Once upon a time there was a small", "1, 2, 3,"]
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=2)
        expected.append(tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True))
    cases = Cases("g", ["a", "b", "c"], texts)
    for batch in (1, 3):
        found = Live(model, tokenizer, settings={"max_new_tokens": 8, "batch": batch}).run(cases, "generation")
        assert found.outputs == expected
    stopped = Live(model, tokenizer, settings={"max_new_tokens": 8, "stop": [expected[0][-3:], expected[1][5:7]]}).run(
        cases, "generation"
    )
    assert stopped.outputs[0] == expected[0].split(expected[0][-3:])[0].split(expected[1][5:7])[0]
    assert stopped.outputs[1] == expected[1].split(expected[0][-3:])[0].split(expected[1][5:7])[0]


def test_chat_and_templates(smol: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("What is the opposite of {input}? Answer in one word.")
    cases = Cases("g", ["a"], ["hot"])
    settings = {"chat": "true", "prompt": f"@{tmp_path / 't.txt'}", "max_new_tokens": "8"}
    assert "cold" in Live(*smol, settings=settings).run(cases, "generation").outputs[0].lower()


def test_other_versions_of_a_real_model_differ_in_size_and_answers() -> None:
    small = TransformersModel(SMOL, {"layers": 2, "quantize": "int8"}).run(CHOICES, "multiple_choice")
    half = TransformersModel(SMOL, {"layers": 2, "dtype": "bfloat16"}).run(CHOICES, "multiple_choice")
    assert all(output in choices for output, choices in zip(small.outputs, CHOICES.choices or [], strict=True))
    tied, layer = 49152 * 576, 2 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert half.costs["size_bytes"] == pytest.approx(2 * (tied + layer), rel=0.001)
    assert small.costs["size_bytes"] == pytest.approx(4 * tied + tied + layer, rel=0.001), "an 8-bit head is no longer tied"
    assert half.name == f"{SMOL} (layers=2, dtype=bfloat16)"


def test_before_and_after_an_update(mini: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = mini
    changed = "encoder.layer.5.output.dense.weight"
    first = Live(model, tokenizer).run(SENTENCES, "classification")
    with updating(model, method="toy", changes=[changed]) as update:
        model.get_parameter(changed).data.mul_(0)
    update.receipt.save(tmp_path / "receipt")
    model.train()
    for found in (update.receipt, receipt.load(tmp_path / "receipt")):
        before, after = hf.before_and_after(model, tokenizer, found, SENTENCES, "classification")
        assert all(module.training for module in model.modules()), "the mode is left as it was"
        assert (before.name, after.name) == ("before", "after")
        assert np.array_equal(before.embeddings, first.embeddings), "the model of before, to the bit, and without dropout"  # type: ignore[arg-type]
        assert not np.allclose(before.embeddings, after.embeddings, atol=1e-2)  # type: ignore[arg-type]
    assert not model.get_parameter(changed).any(), "it is left updated"
    model.eval()
    update.receipt.undo()


def die(folder: str, settings: Settings) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def lack(folder: str, settings: Settings) -> Any:
    raise MissingExtraError("something is missing")


@pytest.mark.parametrize(
    ("opener", "kind", "words"), [(die, ModelError, "want of memory"), (lack, MissingExtraError, "something is missing")]
)
def test_how_a_process_ends_is_a_reason(opener: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        process.run(process.Request("it", "it", "", opener, Settings(), SENTENCES, "classification"), None)


def test_a_run_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(ModelError, match="stopped after"):
        TransformersModel(MINI, {"timeout": 0.3}).run(SENTENCES, "classification")


def test_a_damaged_folder_and_impossible_tasks(tmp_path: Path, mini: tuple[Any, Any]) -> None:
    folder = Path(shutil.copytree(pretrained.folder(MINI), tmp_path / "m"))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        TransformersModel(str(folder)).run(SENTENCES, "classification")
    with pytest.raises(DataError, match="examples"):
        Live(*mini).run(Cases("none", ["a"], ["text"]), "classification")
    with pytest.raises(ModelError, match="cannot answer the task generation"):
        Live(*mini).run(SENTENCES, "generation")
    with pytest.raises(UnknownNameError, match="classification"):
        TransformersModel(MINI).run(SENTENCES, "classfication")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 0}, "at least 1"),
        ({"batch": "many"}, "whole number"),
        ({"dtype": "float8"}, "float32 or bfloat16"),
        ({"chat": "perhaps"}, "true or false"),
        ({"prompt": "no place"}, r"\{input\}"),
        ({"prompt": "@/nowhere.txt"}, "can be read"),
        ({"stop": [""]}, "none empty"),
        ({"quantize": "int8", "dtype": "bfloat16"}, "float32 on the CPU"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        TransformersModel(MINI, settings)


def test_unknown_settings_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="dtype"):
        TransformersModel(MINI, {"dtyp": "float32"})


@pytest.mark.parametrize(("how", "expected"), [("cls_token", 0), ("lasttoken", 2), ("max_tokens", None)])
def test_poolings_ignore_padding(how: str, expected: int | None) -> None:
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    raw = states[0, expected] if expected is not None else states[0, :3].amax(0)
    torch.testing.assert_close(hf_encoder.pool(states, mask, how)[0], raw / raw.norm())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "Dense"),
        ("modules.json", "{", "no JSON"),
        ("modules.json", '"text"', "not what"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}', "pools by"),
    ],
)
def test_pooling_that_is_not_known_is_refused(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=words):
        hf_encoder.sentence_settings(tmp_path)
