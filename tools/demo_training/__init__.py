"""The demo model's training text, tokenizer, batches and evaluation; `train_demo_model.py` drives them."""
