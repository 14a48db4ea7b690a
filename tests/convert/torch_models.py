"""Small torch models with random weights, saved as the Hub lays them out."""

from pathlib import Path

import numpy as np

VOCABULARY = 50  # tokens; the language models have 56 rows, as padded tables do
ROWS = 56


def language_config(kind: str):
    import transformers

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "vocab_size": ROWS}
    if kind == "mpt":  # three heads: ALiBi's slopes for what is no power of two
        return transformers.MptConfig(
            d_model=48, n_heads=3, n_layers=3, vocab_size=ROWS, max_seq_len=64
        )
    if kind == "gpt_neox":
        return transformers.GPTNeoXConfig(
            **sizes, num_attention_heads=3, intermediate_size=80, rotary_pct=0.5
        )
    if kind == "opt":
        return transformers.OPTConfig(
            **sizes,
            num_attention_heads=3,
            ffn_dim=80,
            max_position_embeddings=64,
            word_embed_proj_dim=48,
            dropout=0.0,
        )
    return transformers.LlamaConfig(
        **sizes, num_attention_heads=6, num_key_value_heads=2, intermediate_size=80
    )


def randomize(model) -> None:
    """Biases and norms that are not 0 and 1, so that a missing one shows."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (parameter.ndim == 1 and 0.5))


def save_language_model(kind: str, folder: Path, **options):
    """The torch model, saved with its tokenizer."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(
        language_config(kind), attn_implementation="eager"
    ).eval()
    randomize(model)
    model.save_pretrained(folder, **options)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path, size: int = VOCABULARY) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"</s>": 0} | {f"w{i}": i for i in range(1, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="</s>"
    ).save_pretrained(folder)


def save_vision(folder: Path, projected: bool = True):
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
        attn_implementation="eager",
    )
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    model = kind(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    return model


def random_tokens(rows: int = 2, length: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, length)).astype(np.int32)
