"""Models, tokenizers, adapters: found, loaded, attached."""
