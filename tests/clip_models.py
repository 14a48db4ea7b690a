"""Small CLIPs in torch with random weights, saved with a tokenizer of letters and words."""

from pathlib import Path

from tests.convert.torch_models import randomize

WORDS = ("dax", "wug", "toma", "zorp", "fep")
START, END = 28 + len(WORDS), 29 + len(WORDS)  # ids, the highest of the tokenizer


def save_clip(
    folder: Path, *, activation: str = "quick_gelu", legacy_end: bool = False, safe: bool = True
):
    """The torch model, saved as the Hub lays a CLIP out."""
    import torch
    import transformers

    text = {
        "vocab_size": END + 1,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "hidden_act": activation,
        "bos_token_id": START,
        "eos_token_id": 2 if legacy_end else END,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "hidden_act": activation,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    config._attn_implementation = "eager"
    model = transformers.CLIPModel(config).eval()
    randomize(model)
    with torch.no_grad():  # so that embeddings depend on what is embedded
        model.vision_model.embeddings.patch_embedding.weight.mul_(5)
        model.text_model.embeddings.token_embedding.weight.mul_(5)
        model.vision_model.post_layernorm.bias.zero_()
        model.text_model.final_layer_norm.bias.zero_()
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """One that splits at blanks and puts CLIP's start and end tokens around a text."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = ["<unk>", *"abcdefghijklmnopqrstuvwxyz", "!", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, START), (end, END)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end
    ).save_pretrained(folder)
