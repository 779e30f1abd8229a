"""What is read of logits: a row's few numbers, how it judges a draft, and the signals that a policy sees."""
