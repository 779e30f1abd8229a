"""What others implement: models, a policy, a method, a tokenizer; protocols and their records."""
