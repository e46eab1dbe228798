"""Models and their tokenizers: loaded, given adapters, exported; and what training them will take."""
