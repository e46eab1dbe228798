"""Trains a tiny model of every type that transformers knows, and holds each against plain transformers."""
from __future__ import annotations
import argparse, json, os, signal, sys, time, warnings, logging
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent))

def one_process(kinds, out):
    warnings.simplefilter("ignore")
    import torch
    torch.set_num_threads(1)
    from transformers.utils import logging as tl
    tl.set_verbosity_error()
    logging.getLogger("honed").setLevel(logging.CRITICAL)
    from checks import check
    from honed.model.minimind.tokenizer import train_tokenizer
    tok = train_tokenizer((f"why {n} fox" for n in range(50)), vocab_size=300)
    def stop(*a): raise TimeoutError("too long")
    signal.signal(signal.SIGALRM, stop)
    for kind in kinds:
        start = time.time()
        signal.alarm(150)
        try: r = check(kind, tok)
        except BaseException as e: r = {"made": f"error: {type(e).__name__} {e}"}
        signal.alarm(0)
        r["seconds"] = round(time.time() - start, 1)
        (out / f"{kind}.json").write_text(json.dumps(r, indent=1, default=str))
        print(kind, r["seconds"], flush=True)

one_process(sys.argv[2:], Path(sys.argv[1]))
