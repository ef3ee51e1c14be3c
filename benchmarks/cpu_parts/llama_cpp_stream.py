"""llama.cpp, one stream, run by the Python of its own environment: FOLDER OUT.gguf bf16|q8_0 PROMPT.json ROUNDS.

Writes the folder's safetensors as GGUF with the `gguf` package (Llama and Qwen 3 shapes, no vocabulary), then decodes
greedily through the C interface: prompt in one batch, then token by token, no Python between but an argmax.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

import gguf
import numpy as np

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """bfloat16 tensors as float32."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            first, last = (8 + size + offset for offset in entry["data_offsets"])
            bits = np.frombuffer(raw[first:last], dtype=np.uint16).astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(entry["shape"])
    return found


def write(folder: Path, out: Path, kind: str) -> None:
    """One GGUF file; norms stay float32."""
    config = json.loads((folder / "config.json").read_text())
    arch = {"llama": "llama", "qwen3": "qwen3"}[config["model_type"]]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(str(out), arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    wanted = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    for name, value in tensors(folder / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            number, part = stem.removeprefix("model.layers.").split(".", 1)
            target = f"blk.{number}.{LAYER[part]}.weight"
            if arch == "llama" and part.endswith(("q_proj", "k_proj")):  # its rotary pairs are neighbours
                num = len(value) // dim
                value = value.reshape(num, 2, dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
        else:
            target = f"{TOP[stem]}.weight"
        if value.ndim == 1:
            writer.add_tensor(target, value)
        else:
            writer.add_tensor(target, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Seconds per round."""
    import llama_cpp as c

    folder, out, kind, path, rounds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
    if not out.exists():
        write(folder, out, kind)
    work = json.loads(Path(path).read_text())
    prompt, length = work["many"][0], work["one_len"]
    c.llama_backend_init()
    quiet = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    model = c.llama_model_load_from_file(str(out).encode(), c.llama_model_default_params())
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 512, 512, work["threads"], work["threads"]
    context = c.llama_init_from_model(model, params)
    vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    seconds, tokens = [], []
    for _ in range(rounds):
        c.llama_memory_clear(c.llama_get_memory(context), True)
        start = time.perf_counter()
        ids, tokens = prompt, []
        for _ in range(length):
            array = (c.llama_token * len(ids))(*ids)
            assert c.llama_decode(context, c.llama_batch_get_one(array, len(ids))) == 0
            logits = np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), shape=(vocab,))
            ids = [int(logits.argmax())]
            tokens += ids
        seconds.append(time.perf_counter() - start)
    print("RESULT " + json.dumps({"version": c.__version__, "one": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
