"""Tiny networks with random weights, saved as people save theirs."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "cat", "dog", "a", "big"]
POSITIONS = 24
PICTURE_PX = 32
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def save_text_model(folder: Path, name: str = "bert") -> Path:
    """``bert``, ``bert-mlm`` (no pooler in the file), ``gpt2``, ``t5`` or ``clip`` into ``folder / name``."""
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = {"vocab_size": len(WORDS), "max_position_embeddings": POSITIONS, **sizes}
    makers = {
        "bert": lambda: t.BertModel(t.BertConfig(**bert)),
        "bert-mlm": lambda: t.BertForMaskedLM(t.BertConfig(**bert)),
        "gpt2": lambda: t.GPT2Model(
            t.GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS)
        ),
        "t5": lambda: t.T5Model(
            t.T5Config(vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
        ),
        "clip": _clip,
    }
    _save(makers[name], folder / name)
    _save_tokenizer(folder / name)
    return folder / name


def save_picture_model(folder: Path, name: str = "vit") -> Path:
    """``vit``, ``vit-classes`` (no pooler in the file), ``vit-coarse`` (one patch), ``resnet`` or ``clip`` likewise."""
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vit = {"image_size": PICTURE_PX, "patch_size": 8, **sizes}
    makers = {
        "vit": lambda: t.ViTModel(t.ViTConfig(**vit)),
        "vit-coarse": lambda: t.ViTModel(t.ViTConfig(**vit | {"patch_size": PICTURE_PX})),
        "vit-classes": lambda: t.ViTForImageClassification(t.ViTConfig(**vit)),
        "resnet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        "clip": _clip,
    }
    _save(makers[name], folder / name)
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": PICTURE_PX, "width": PICTURE_PX}}
    said |= {"do_resize": False, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (folder / name / "preprocessor_config.json").write_text(json.dumps(said))
    return folder / name


def _clip() -> Any:
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": POSITIONS, "bos_token_id": 2, "eos_token_id": 3}
    picture = {"image_size": PICTURE_PX, "patch_size": 8}
    return t.CLIPModel(t.CLIPConfig(text_config={**text, **sizes}, vision_config={**picture, **sizes}))


def _save(make: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        # As they are drawn, weights are so small that all inputs come out alike.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
